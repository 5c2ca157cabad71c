"""Probes: ways to draw an erased concept that no wording of a prompt is."""
