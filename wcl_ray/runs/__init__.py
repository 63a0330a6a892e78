"""The driver's side of a run: stages, rounds, the run folder, resources, and the jobs around it."""
