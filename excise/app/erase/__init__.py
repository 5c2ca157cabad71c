"""Making erasers, and generating pictures with them."""
