"""How good an encoder is: embeddings, kNN, linear probe, geometry of the features."""
