"""Training runs: their folders, checkpoints, loop and reports."""

from ..utils.blas import load_fast_blas

load_fast_blas()  # before a module of this package imports MLX
