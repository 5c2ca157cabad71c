"""The kinds of edits: tensors and formulas, in pure torch."""
