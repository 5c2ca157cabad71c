"""What pages and sheets of pictures are made of."""
