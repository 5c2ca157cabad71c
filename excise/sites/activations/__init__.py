"""Capture of activations at Sites, and their storage in shards."""
