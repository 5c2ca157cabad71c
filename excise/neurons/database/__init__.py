"""The neuron database: SQLite, full-text search, export."""
