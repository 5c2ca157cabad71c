"""Methods that steer the model at inference; its weights stay as they are."""
