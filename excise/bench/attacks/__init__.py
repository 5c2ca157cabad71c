"""Attacks that search for a prompt. The budget of each is in its configuration, and appears in the report."""
