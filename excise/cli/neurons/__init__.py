"""Commands of the neuron database."""
