"""Encoders that turn queries and titles into vectors."""

from ...utils.blas import load_fast_blas

load_fast_blas()  # before a module of this package imports MLX
