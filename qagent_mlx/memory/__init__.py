"""User memory: events become sessions, an interest graph, and a profile a model can read."""
