"""Checks that every erasure took effect. They fail closed: in doubt, nothing is rendered."""
