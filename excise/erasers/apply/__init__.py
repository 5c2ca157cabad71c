"""How each kind of edit is put on a live pipeline."""
