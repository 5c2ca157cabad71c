"""How a module of the pipeline is wrapped."""
