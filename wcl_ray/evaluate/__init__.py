"""How good an encoder is: embeddings, kNN, linear probe, spread."""
