"""Speed, measured: the standard and the agentic workload, alone and beside other trainers."""

from ..utils.blas import load_fast_blas

load_fast_blas()  # before a module of this package imports MLX
