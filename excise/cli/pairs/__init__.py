"""Commands for files of prompt pairs."""
