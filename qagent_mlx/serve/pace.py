"""How long decodes take, so that no request waits beyond its deadline."""

from __future__ import annotations

from dataclasses import dataclass

FIXED_CHAINS = 16  # a decode of n chains takes about as long as n + so many chains cost each


@dataclass(slots=True)
class DecodePace:
    """How long decodes take, learned from those that were done."""

    seconds_per_chain: float = 0.02

    def seconds(self, chains: int) -> float:
        """The time that a decode of so many chains will take."""
        return self.seconds_per_chain * (FIXED_CHAINS + chains)

    def chains(self, seconds: float) -> float:
        """How many chains can be decoded in a time; below 0 where not even one can."""
        return seconds / self.seconds_per_chain - FIXED_CHAINS

    def observe(self, chains: int, seconds: float) -> None:
        """Learn from a decode (an exponential moving average)."""
        self.seconds_per_chain += 0.2 * (seconds / (chains + FIXED_CHAINS) - self.seconds_per_chain)

    def slow_down(self) -> None:
        """Learn from a decode that nobody waited for: it was slower than expected."""
        self.seconds_per_chain *= 1.2
