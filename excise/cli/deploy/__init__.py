"""Commands that bring erasers into service: `serve` and `export`."""
