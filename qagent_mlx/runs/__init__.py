"""Training runs: their folders, checkpoints, loop and reports."""
