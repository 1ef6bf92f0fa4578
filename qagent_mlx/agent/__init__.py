"""The agent: its protocol, its tools, and chains of retrieval decoded in batches."""

from ..utils.blas import load_fast_blas

load_fast_blas()  # before a module of this package imports MLX
