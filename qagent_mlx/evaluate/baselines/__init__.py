"""Recommenders without an agent, for comparison."""
