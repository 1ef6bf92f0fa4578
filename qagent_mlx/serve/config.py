"""How a server runs."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from ..agent.recommend import GROUP
from ..errors import QAgentError


@dataclass(frozen=True)
class ServeConfig:
    """All settings of a server, with defaults for one shop on one machine."""

    host: str = "127.0.0.1"
    port: int = 8800
    token: str = ""  # what clients must bring; needed to listen beyond this machine
    policy: str = ""  # empty: grpo, else the newest
    dtype: str = ""  # of its weights; empty: what suits the device
    k: int = 5
    chains: int = 0  # a request gets, and may ask for at most; 0: what the policy needs, and GROUP
    workers: int = 1  # processes that decode
    seed: int = 0
    deadline_ms: float = 1000.0  # of a request that names none
    collect_ms: float = 3.0  # how long the worker waits for company before it decodes
    batch: int = 32  # users in one decode
    queue: int = 256  # requests that may wait; who comes later gets the trending queries
    cache_seconds: float = 60.0  # how long an answer is good when its user does nothing; 0: off
    cache_users: int = 20_000
    rate: float = 200.0  # requests a second of one client; 0: no limit
    burst: float = 400.0
    body_bytes: int = 1 << 20
    events_a_post: int = 1000
    watch: bool = True  # take up the policy anew when its folder changes
    read_only: bool = False  # refuse events, and let other processes read the shop

    @property
    def most_chains(self) -> int:
        """What a request may ask for."""
        return self.chains or GROUP

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check(self) -> None:
        """Refuse what would be unsafe or could never answer.

        Raises:
            QAgentError: names the setting and what it may be.
        """
        if not self.loopback and len(self.token) < 16:
            raise QAgentError(
                f"to listen on {self.host} clients need a token: put at least 16 characters into "
                "QAGENT_TOKEN or a --token-file, or listen on 127.0.0.1"
            )
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise QAgentError("the token must be plain ASCII; make one with: openssl rand -hex 24")
        if min(self.k, self.workers, self.batch, self.queue, self.events_a_post) < 1:
            raise QAgentError("k, workers, batch and queue must be at least 1")
        if self.chains < 0:
            raise QAgentError("chains must be at least 1, or 0 for what the policy needs")
        if self.deadline_ms <= 0 or self.collect_ms < 0 or self.rate < 0:
            raise QAgentError("the deadline must be above 0, collecting and the rate at least 0")
