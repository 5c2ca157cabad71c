"""Benchmark runs, their figures and their page."""
