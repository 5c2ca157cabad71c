"""Methods that train the model's weights."""
