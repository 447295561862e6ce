"""From a config to a submitted job: checks, the frozen copy in the run directory, sbatch."""
