"""Methods that edit neurons of a sparse autoencoder."""
