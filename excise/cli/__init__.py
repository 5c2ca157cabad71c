"""Command line: parse, call, print. Heavy modules are imported inside the commands."""

from __future__ import annotations

from excise.cli.root import app, main

__all__ = ["app", "main"]
