"""Audits: what an eraser does to sentences and neurons it should leave alone."""
