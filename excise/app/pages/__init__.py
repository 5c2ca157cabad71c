"""Building blocks of pages and of sheets of pictures."""
