"""What runs do, read from their directories and from SLURM's queue."""
