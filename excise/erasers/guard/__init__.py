"""What fails closed: checks that every erasure fired."""
