"""Training, comparing and choosing sparse autoencoders."""
