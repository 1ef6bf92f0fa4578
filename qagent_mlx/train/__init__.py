"""Training: cases from the log, demonstrations, rewards, SFT and GRPO."""

from ..utils.blas import load_fast_blas

load_fast_blas()  # before a module of this package imports MLX
