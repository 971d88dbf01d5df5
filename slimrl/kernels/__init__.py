"""Faster ways to compute what torch computes as well. Deleting this room costs speed and nothing else."""
