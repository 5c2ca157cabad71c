"""Neuron databases: building, explaining, importing and browsing."""
