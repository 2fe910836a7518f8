"""A selection as a plan of tasks, done by processes here, by Slurm, by Ray, or by hand."""
