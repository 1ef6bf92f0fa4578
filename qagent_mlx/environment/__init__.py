"""The environment that a policy learns in: cases, chains, rewards."""
