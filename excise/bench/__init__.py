"""Benchmarks of erasers: suites, attacks, resumable runs, detectors and statistics."""
