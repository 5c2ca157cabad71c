"""Reading activations at a Site, and keeping them in shards."""
