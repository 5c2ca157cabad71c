"""Hooks that wrap modules of a pipeline."""
