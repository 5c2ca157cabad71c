"""Training the bundled model, and its card."""
