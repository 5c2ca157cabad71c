"""SAEs exchanged with other libraries: `importers` reads what they wrote, `exporters` writes what they read."""
