"""Encoder, loss and optimisers: plain torch, no Ray."""
