"""An eraser at rest: its files, manifest, card and signature."""
