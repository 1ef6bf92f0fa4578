"""The agent: its protocol, its tools, and chains of retrieval decoded in batches."""
