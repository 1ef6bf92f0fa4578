"""The inventory: product search that the agent looks into before it recommends."""
