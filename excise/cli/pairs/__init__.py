"""Commands of files of prompt pairs."""
