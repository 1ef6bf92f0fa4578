"""A shop's folder: its database, settings and schema."""
