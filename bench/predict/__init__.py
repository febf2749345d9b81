"""Predictions: the speedup that recorded drafts would have where a target pass costs something else."""
