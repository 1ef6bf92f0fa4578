"""Settings of the server, and of recommending to many users at once."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta

from ..utils.settings import Natural, Positive, SettingError, check

TOKEN_LENGTH = 16  # characters that a token must have where other machines can connect

_Seconds = Annotated[float, Meta(ge=0, extra={"unit": "seconds"})]
_Milliseconds = Annotated[float, Meta(extra={"unit": "milliseconds"})]
_Seed = Annotated[Natural, Meta(description="Seed of the sampling.")]
_Dtype = Annotated[
    str, Meta(description="Number type of the weights; by default what suits the device.")
]


@dataclass(frozen=True)
class ServeConfig:
    """All settings of a server, with defaults for one shop on one machine."""

    host: Annotated[
        str, Meta(description="Address to listen on; beyond this machine a token is needed.")
    ] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    ] = 8800
    token: Annotated[
        str, Meta(description="Secret that clients send; needed to listen beyond this machine.")
    ] = ""
    policy: Annotated[
        str,
        Meta(
            description="Policy that answers; by default the promoted one, else grpo, else the "
            "newest."
        ),
    ] = ""
    dtype: _Dtype = ""
    k: Annotated[
        int, Meta(ge=1, le=100, description="Queries for a request that names no number.")
    ] = 5
    chains: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | None,
        Meta(
            description="Chains for each user, and the most that a request may ask for; by "
            "default 2 "
            "of a policy trained by GRPO, else 8, and a request may ask for 8."
        ),
    ] = None
    workers: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Processes that decode: the server's own, or from two on so many beside "
            "it; one a core is most. Each takes about 300 MB.",
        ),
    ] = 1
    seed: _Seed = 0
    deadline_ms: Annotated[
        _Milliseconds,
        Meta(
            ge=1,
            le=60_000,
            description="Deadline of a request that names none; if it passes, a fallback is sent.",
        ),
    ] = 1000.0
    collect_ms: Annotated[
        _Milliseconds,
        Meta(ge=0, description="Time that the first request waits for others to share its decode."),
    ] = 3.0
    batch: Annotated[Positive, Meta(description="Users in one decode, at most.")] = 32
    queue: Annotated[
        Positive, Meta(description="Requests that may wait; later ones get a fallback at once.")
    ] = 256
    cache_seconds: Annotated[
        _Seconds,
        Meta(description="How long a response is good when its user does nothing; 0 for never."),
    ] = 60.0
    cache_users: Annotated[
        Positive, Meta(description="Users whose responses are cached, at most.")
    ] = 20_000
    think: Annotated[
        Literal["off", "events", "active"],
        Meta(
            description="For whom chains run before anybody asks, while nobody waits: off, after "
            "each user's events, or also for all who were active in the last 7 days of the log."
        ),
    ] = "events"
    think_seconds: Annotated[
        float,
        Meta(
            gt=0,
            extra={"unit": "seconds"},
            description="How long an answer that was thought before is good when nothing changes.",
        ),
    ] = 10_800.0
    think_users: Annotated[
        Positive, Meta(description="Users whose answers wait, at most; a thousand take about 5 MB.")
    ] = 5_000
    rate: Annotated[
        float, Meta(ge=0, description="Requests a second of one client, at most; 0 for no limit.")
    ] = 200.0
    burst: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Requests at once of one client; by default what 2 seconds allow."),
    ] = None
    proxy: Annotated[
        str,
        Meta(
            description="Addresses or networks of the proxies in front, such as 127.0.0.1 or "
            "10.0.0.0/8, with commas between: only their X-Forwarded-For says who the client is."
        ),
    ] = ""
    connections: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="Connections at the same time, at most; beyond it the ones that ask "
            "nothing are closed.",
        ),
    ] = 500
    body_bytes: Annotated[
        Positive, Meta(description="Size of a request's body, at most.", extra={"unit": "bytes"})
    ] = 1 << 20
    events_a_post: Annotated[Positive, Meta(description="Events in one request, at most.")] = 1000
    products_a_post: Annotated[Positive, Meta(description="Products in one request, at most.")] = (
        1000
    )
    watch: Annotated[
        bool, Meta(description="Take up promotions, and newer versions of a named policy.")
    ] = True
    read_only: Annotated[bool, Meta(description="Refuse events, and record nothing.")] = False
    explore: Annotated[
        float,
        Meta(
            ge=0,
            le=0.2,
            description="Share of the answers whose first five queries are shuffled a little, so "
            "that what was shown tells what others would have earned (qagent offpolicy).",
        ),
    ] = 0.0
    record: Annotated[
        bool, Meta(description="Record which queries users are shown (qagent impressions).")
    ] = True

    @property
    def max_chains(self) -> int:
        """The most chains that a request may ask for."""
        from ..agent.recommend import GROUP

        return self.chains or GROUP

    @property
    def proxies(self) -> list[str]:
        """The proxies that may say who the client is.

        Raises:
            SettingError: one is no address and no network.
        """
        places = [place.strip() for place in self.proxy.split(",") if place.strip()]
        for place in places:
            try:
                ipaddress.ip_network(place)
            except ValueError:
                raise SettingError(
                    "proxy", f"{place!r} is no address or network such as 127.0.0.1 or 10.0.0.0/8"
                ) from None
        return places

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
            SettingError: names the setting and what it may be.
        """
        check(self)
        self.proxies  # noqa: B018  (they are addresses)
        if not self.loopback and len(self.token) < TOKEN_LENGTH:
            raise SettingError(
                "token",
                f"must have at least {TOKEN_LENGTH} characters to listen on {self.host}; or "
                "listen on 127.0.0.1",
            )
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise SettingError("token", "must be plain ASCII; make one with: openssl rand -hex 24")


@dataclass(frozen=True, slots=True)
class BulkConfig:
    """How to recommend to many users (`batch.bulk_recommend`)."""

    k: Annotated[int, Meta(ge=1, le=100, description="Queries for each user.")] = 5
    as_of: Annotated[
        datetime | None,
        Meta(
            description="A moment (UTC); nothing at or after it is used. Default: after the "
            "log's last event."
        ),
    ] = None
    seed: _Seed = 0
    workers: Annotated[
        Annotated[int, Meta(ge=1, le=64)] | None,
        Meta(
            description="Processes for many users, on this machine; by default one a core, at "
            "most 4."
        ),
    ] = None
    dtype: _Dtype = ""
    part: Annotated[Positive, Meta(description="Users a part: what a stop can cost.")] = 128
    record: Annotated[
        bool, Meta(description="Users are shown this: it is recorded when the file is complete.")
    ] = False
