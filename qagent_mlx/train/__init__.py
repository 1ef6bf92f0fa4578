"""Training: pretraining, SFT on demonstrations, GRPO, and distillation."""

from ..utils.blas import load_fast_blas

load_fast_blas()  # before a module of this package imports MLX
