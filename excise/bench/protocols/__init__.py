"""Protocols: the paper's benchmarks on Stable Diffusion, with their constants, their files and their conventions."""
