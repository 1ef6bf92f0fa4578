"""Helpers that know nothing of shops, memory or models."""
