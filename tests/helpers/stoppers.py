"""Stoppers for decoding in tests."""


class Never:
    """Ends no turn: rows decode to their limit."""

    def feed(self, token):
        return False

    def reset(self):
        pass
