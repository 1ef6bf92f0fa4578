"""A simulated shop and its shoppers."""
