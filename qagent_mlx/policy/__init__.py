"""Policies: a language model (MLX-LM) with a LoRA adapter."""
