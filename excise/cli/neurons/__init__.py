"""Commands for the neuron database."""
