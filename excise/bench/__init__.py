"""Measuring erasers: intervals now; suites, runners and reports as they come."""
