"""The terminal demo: the whole story on the sample shop, then a playground."""
