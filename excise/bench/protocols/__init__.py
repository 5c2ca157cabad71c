"""Protocols: the paper's benchmarks on Stable Diffusion, with their constants, files and conventions."""
