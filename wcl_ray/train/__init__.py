"""The training loop of a worker and the driver of a run."""
