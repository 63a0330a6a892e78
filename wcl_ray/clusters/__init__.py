"""Metadata or features in, cluster ids out."""
