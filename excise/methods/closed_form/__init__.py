"""Methods that solve for new weights in closed form."""
