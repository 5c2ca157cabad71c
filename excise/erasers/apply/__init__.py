"""How each kind of edit acts on a live pipeline."""
