"""Submitting runs to SLURM through submitit, following them, bringing them back. No torch: it runs on a login node."""
