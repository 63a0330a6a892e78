"""Evaluation of encoders: embeddings, kNN, linear probe, geometry of the features."""
