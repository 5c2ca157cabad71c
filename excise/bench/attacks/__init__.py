"""Attacks that search for a prompt. Each one's budget is in its configuration, and goes into the report."""
