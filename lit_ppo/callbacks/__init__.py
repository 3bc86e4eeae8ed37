"""Callbacks of a run: greedy evaluation, stop when solved, checkpoints, the curve, progress."""
