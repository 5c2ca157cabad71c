"""The neuron database, built and shown."""
