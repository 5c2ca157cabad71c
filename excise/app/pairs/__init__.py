"""Files of prompt pairs, written by a language model and reviewed by a person."""
