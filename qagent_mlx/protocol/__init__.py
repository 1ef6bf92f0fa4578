"""The agent's language: actions, grammar, tokens, marks and escaping."""
