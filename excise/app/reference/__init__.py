"""Training of the bundled model, and its card."""
