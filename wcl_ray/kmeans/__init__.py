"""Distributed k-means, usable on its own; it does not depend on images or runs."""
