"""Chains of retrieval, many at once: decode until a turn ends, run the tools, go on.

Rollouts keep the very ids that the policy chose and the tools inserted, with a mask that tells
them apart; nothing is decoded to text and encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from ..policy.policy import Policy
from ..protocol.config import AgentConfig
from ..protocol.query_automaton import QueryAutomaton
from ..utils.runtime import total_memory
from .decode import Decoder
from .episode import Episode, EpisodeRules
from .sequences import DecodingBatch
from .tools import SearchProducts
from .types import Rollout, Task, Turn
from .writing import query_automaton

OBSERVATIONS = 4096  # answers of tools whose token ids are remembered
CACHE_STEP = 256  # tokens in which caches are accounted for


class RolloutRunner:
    """Runs chains with one policy, one search engine and one configuration.

    At most ``max_rows`` chains decode or wait for a tool at the same time, and fewer where
    their keys and values would take more than ``memory`` bytes (by default an eighth of the
    machine's). ``guided`` is for serving with a policy that stays as it is: only tokens that
    form an action are drawn. Training scores the full distribution and must not be guided.
    """

    def __init__(
        self,
        policy: Policy,
        tools: SearchProducts,
        config: AgentConfig,
        max_rows: int = 256,
        memory: int | None = None,
        guided: bool = False,
    ) -> None:
        self.policy, self.config, self.tools = policy, config, tools
        self.max_rows = max_rows
        self.memory = total_memory() // 8 if memory is None else memory
        self.decoder = Decoder(policy)
        self._is_training = not guided
        self.rules = EpisodeRules(
            policy,
            config,
            grammar=policy.codec.grammar() if guided and config.guided else None,
            # Chains of a group read the same profile and much the same results.
            encode_observation=lru_cache(OBSERVATIONS)(policy.codec.observation),
            automaton=query_automaton(policy, config, tools.catalog),
        )

    @property
    def automaton(self) -> QueryAutomaton | None:
        """The queries that chains may write; None where any."""
        return self.rules.automaton

    def run(
        self,
        tasks: Sequence[Task],
        group: int,
        seed: Sequence[int] | None,
        progress: Callable[[int], None] | None = None,
        numbers: Sequence[int] | None = None,
        watch: Callable[[int, Turn], None] | None = None,
    ) -> list[Rollout]:
        """Run ``group`` chains for each task; returns them in order of task and member.

        Args:
            tasks: One for each case.
            group: Chains for each task (G).
            seed: Every chain is sampled at temperature 1 from a random stream of its own, which
                depends on the seed, the task's position (or stream) and the member only. None
                decodes greedily.
            progress: Called with the number of chains that have ended.
            numbers: Positions of the tasks, where they are part of a longer list.
            watch: Called with a chain's position and each turn, as soon as that has its answer.
        """
        if self._is_training:  # the weights may have changed since the last call
            self.decoder.refresh()
        positions = range(len(tasks)) if numbers is None else numbers
        chains = [
            (task, position, member)
            for task, position in zip(tasks, positions, strict=True)
            for member in range(group)
        ]
        episodes = [
            Episode(self.rules, *chain, seed, watch=partial(watch, i) if watch else None)
            for i, chain in enumerate(chains)
        ]
        self.complete(episodes, progress)
        return [episode.rollout() for episode in episodes]

    def complete(
        self, episodes: Sequence[Any], progress: Callable[[int], None] | None = None
    ) -> None:
        """Run episodes, or what acts and observes like them, to their ends."""
        schedule = _Schedule(self, episodes)
        while schedule.unfinished:
            schedule.admit()
            schedule.run_tools()
            if schedule.decode() and progress is not None:
                progress(schedule.ended)

    def use_tools(self, tools: SearchProducts) -> None:
        """Search with other tools, such as those of another state of the catalog, from now on."""
        self.tools = tools
        automaton = query_automaton(self.policy, self.config, tools.catalog)
        self.rules = replace(self.rules, automaton=automaton)

    def rows_that_fit(self, length: int) -> int:
        """Number of chains of ``length`` tokens whose caches fit into memory, at least 1."""
        length = -(-length // CACHE_STEP) * CACHE_STEP
        # A cache that grows, and one that loses rows, exists twice for a moment.
        fitting = self.memory // max(1, 2 * length * self.policy.cache_bytes)
        return int(max(1, min(self.max_rows, fitting)))


class _Schedule:
    """Which chains of one `RolloutRunner.run` decode, wait for a tool, or have not begun.

    It depends on the chains alone, so a resumed run makes the batches of an unbroken one.
    """

    def __init__(self, runner: RolloutRunner, episodes: Sequence[Any]) -> None:
        self._runner, self._decoder = runner, runner.decoder
        self._queue = list(episodes)
        self._running = DecodingBatch()
        self._waiting: list[DecodingBatch] = []
        self._longest = len(runner.policy.prompt) + runner.config.profile_budget  # tokens
        self.ended = 0

    @property
    def _waiting_rows(self) -> int:
        return sum(len(batch.sequences) for batch in self._waiting)

    @property
    def unfinished(self) -> bool:
        """Whether some chain has not ended."""
        return bool(self._queue or self._running.sequences or self._waiting)

    def admit(self) -> None:
        """Begin chains where there is room for them.

        Joining a running batch copies its cache, so chains come in by half batches.
        """
        if not self._queue:
            return
        capacity = self._runner.rows_that_fit(self._longest)
        held = len(self._running.sequences) + self._waiting_rows
        room = capacity - held
        if 2 * room >= capacity or not held:
            admitted, self._queue = self._queue[:room], self._queue[room:]
            self._running.extend(self._decoder.start([e.sequence for e in admitted]))

    def run_tools(self) -> None:
        """Answer the chains that wait, all in one call: when none decodes, or most wait."""
        running = len(self._running.sequences)
        if not self._waiting or (running and self._waiting_rows < 2 * running):
            return
        batch, *others = self._waiting
        for other in others:
            batch.extend(other)
        self._waiting = []
        episodes: list[Any] = [sequence.tag for sequence in batch.sequences]
        requests = {i: e.request for i, e in enumerate(episodes) if e.request is not None}
        results = dict(zip(requests, self._runner.tools.run(list(requests.values())), strict=True))
        for i, episode in enumerate(episodes):
            episode.observe(results.get(i))
            self._longest = max(self._longest, len(episode.sequence.tokens))
        self._running.extend(self._decoder.resume(batch))

    def decode(self) -> bool:
        """Draw one id for each running chain; returns whether some turn has ended."""
        self._running, stopped = self._decoder.draw(self._running)
        if stopped.sequences:
            waits = [i for i, s in enumerate(stopped.sequences) if s.tag.act()]
            self.ended += len(stopped.sequences) - len(waits)
            if waits:
                parked = stopped.select(waits) if len(waits) < len(stopped.sequences) else stopped
                parked.evaluate()
                self._waiting.append(parked)
        if self._running.sequences:
            self._decoder.advance(self._running)
        return bool(stopped.sequences)
