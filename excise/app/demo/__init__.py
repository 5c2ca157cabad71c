"""The demo: an eraser fitted, measured and reported on the bundled model."""
