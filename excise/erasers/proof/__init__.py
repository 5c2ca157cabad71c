"""What verify and audit measure on an attached eraser: how much it changes, and how much of its concept it removes."""
