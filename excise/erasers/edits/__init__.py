"""What is changed: tensors and formulas, in pure torch."""
