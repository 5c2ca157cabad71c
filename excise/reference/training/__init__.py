"""Training of the bundled model's parts."""
