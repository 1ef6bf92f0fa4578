"""A random generator that draws what a fuzzer's bytes say, so that changing a byte changes one draw."""

from __future__ import annotations

import random


class Drawn(random.Random):
    """As `random.Random`; after the end of the bytes it draws from a generator seeded by them."""

    def __new__(cls, data: bytes) -> Drawn:
        """A generator of its own; the bytes are no seed of the base class."""
        return super().__new__(cls)

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data, self._at = data, 0
        self._rest = random.Random(data)

    def getrandbits(self, k: int, /) -> int:
        """The next ``k`` bits, from whole bytes; all the integer draws of a generator rest on it."""
        size = -(-k // 8)
        if self._at + size > len(self._data):
            return self._rest.getrandbits(k)
        self._at += size
        return int.from_bytes(self._data[self._at - size : self._at], "little") & ((1 << k) - 1)

    def random(self) -> float:
        """A float in [0, 1) of the next three bytes."""
        return self.getrandbits(24) / (1 << 24)
