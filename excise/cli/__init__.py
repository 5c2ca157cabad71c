"""The command line: parse, call, print. Whatever is heavy is imported inside the commands."""

from __future__ import annotations

from excise.cli.root import app, main

__all__ = ["app", "main"]
