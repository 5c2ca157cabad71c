"""Commands that measure: bench, reproduce, reference."""
