"""Policies: a language model (MLX-LM) with a LoRA adapter."""

from ..utils.blas import load_fast_blas

load_fast_blas()  # before a module of this package imports MLX
