"""What a shop shows to its users, what came of it, and who decides about it."""
