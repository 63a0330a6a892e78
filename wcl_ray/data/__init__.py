"""Images and metadata in, uint8 batches and augmented views out."""
