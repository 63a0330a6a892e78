"""Where images come from: class folders, Parquet, WebDataset."""
