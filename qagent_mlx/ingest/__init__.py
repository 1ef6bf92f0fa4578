"""Files of products and events, read into a shop."""
