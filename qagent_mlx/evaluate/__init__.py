"""Metrics, baselines, reports, and the simulator behind the sample shop."""
