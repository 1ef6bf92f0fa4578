"""Encoders that turn queries and titles into vectors."""
