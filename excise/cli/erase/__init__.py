"""Commands that make, use, check and share erasers."""
