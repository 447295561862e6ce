"""SLURM scripts for the stages; knows no tensors."""
