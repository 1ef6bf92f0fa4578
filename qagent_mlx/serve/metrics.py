"""The counters of a server, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 2.5, 5.0, 10.0)
AGES = (1, 10, 60, 300, 1800, 3600, 10_800, 43_200)
USERS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server; they carry no user id and no query."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"qagent_{name}", text, labels, registry=self.registry)

        def histogram(
            name: str, text: str, *labels: str, buckets: Sequence[float] = SECONDS
        ) -> Histogram:
            name = f"qagent_{name}"
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        self.requests = counter("requests", "Requests by route and status.", "route", "status")
        self.seconds = histogram("request_seconds", "Time of a request.", "route")
        self.answers = counter("answers", "Recommendations by where they came from.", "source")
        self.fallbacks = counter("fallbacks", "Answers without a chain, by reason.", "reason")
        self.cache = counter("cache", "Look-ups of answers.", "outcome")
        self.batch = histogram("batch_users", "Users in one decode.", buckets=USERS)
        self.decode = histogram("decode_seconds", "Time of one decode.")
        self.chains = counter("chains", "Chains that were decoded.")
        self.stages = histogram(
            "stage_seconds",
            "Time that a computed answer waited for each stage of its batch.",
            "stage",
        )
        self.thoughts = counter("thoughts", "Answers thought before, by outcome.", "outcome")
        self.thought_age = histogram(
            "thought_age_seconds",
            "Age of an answer that was thought before, when it was asked for.",
            buckets=AGES,
        )
        self.events = counter("events", "Events posted, by outcome.", "outcome")
        self.shown = counter("shown", "Answers recorded as shown, by outcome.", "outcome")
        self.store = histogram(
            "store_seconds",
            "Time to move the journal into the shop's file, or to take a snapshot of it.",
            "work",
        )
        self.policies = counter("policy_loads", "Policies taken up.", "outcome")
        self._policy = Gauge(
            "qagent_policy_info",
            "The policy that recommends; always 1.",
            ("policy", "version"),
            registry=self.registry,
        )
        self.queue = Gauge("qagent_queue", "Requests that wait.", registry=self.registry)

    def name_policy(self, policy: str, version: int | None) -> None:
        """Say which policy recommends from now on."""
        self._policy.clear()
        self._policy.labels(policy, version or "").set(1)

    def text(self) -> bytes:
        """The exposition format 0.0.4."""
        return generate_latest(self.registry)
