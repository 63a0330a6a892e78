"""Distributed k-means, usable on its own: knows nothing of images or runs."""
