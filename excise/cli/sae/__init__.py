"""Commands of sparse autoencoders."""
