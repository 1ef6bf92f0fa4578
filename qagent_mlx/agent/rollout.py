"""Chains of retrieval, many at once: decode, stop at an action, run the tool, go on.

The trained ids are the sampled ids: a rollout keeps the very tokens that the policy chose
and the environment inserted, with a mask that tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import mlx.core as mx

from ..policy.policy import Policy
from ..protocol.config import AgentConfig
from ..utils.runtime import total_memory
from .decode import Decoder, DecodingBatch
from .episode import Episode, EpisodeRules
from .tools import FetchMemory, SearchProducts
from .types import Rollout, Task, Turn

OBSERVATIONS = 4096  # tool answers whose ids are remembered


class RolloutRunner:
    """Runs chains with one policy, one search engine and one configuration."""

    def __init__(
        self,
        policy: Policy,
        tools: SearchProducts,
        config: AgentConfig,
        max_rows: int = 256,
        memory: int | None = None,
        guided: bool = False,
    ) -> None:
        """Chains that are decoded together are bounded by ``max_rows`` and by memory.

        Args:
            policy: Whose chains.
            tools: What answers searches.
            config: How chains run.
            max_rows: Rows that decode or wait at the same time.
            memory: Bytes for their keys and values; an eighth of the machine's by default.
            guided: For serving, with a policy that stays as it is: draw only what is an action
                where the policy's chains are so.
        """
        self.policy = policy
        # Guided chains draw only what is allowed; training must not be (see grammar.py).
        grammar = policy.codec.grammar() if guided and config.guided else None
        self.config = config
        self.memory = total_memory() // 8 if memory is None else memory
        self._token_bytes = policy.cache_bytes
        # Chains of a group read the same profile and much the same results.
        observation = lru_cache(OBSERVATIONS)(policy.codec.observation)
        self.rules = EpisodeRules(policy, config, grammar, observation)
        self._longest = len(policy.prompt) + config.profile_budget
        self._tools = tools
        self._memory = FetchMemory(config)
        self._trained = not guided
        self.decoder = Decoder(policy, light=True)
        self._max_rows = max_rows

    def run(
        self,
        tasks: Sequence[Task],
        group: int,
        seed: Sequence[int] | None,
        progress: Callable[[int], None] | None = None,
        numbers: Sequence[int] | None = None,
        watch: Callable[[int, Turn], None] | None = None,
    ) -> list[Rollout]:
        """``group`` chains for each task, in order of task and member.

        Args:
            tasks: One a case.
            group: Rollouts a task (G).
            seed: With a seed every chain is sampled at temperature 1 from its own stream,
                which depends only on the seed, the task's place (or stream) and the member.
                None decodes greedily.
            progress: Called with the number of chains that have ended.
            numbers: The tasks' places, where these are some of a larger list.
            watch: Called with a chain's place and its turn, as soon as that has its answer.
        """
        if self._trained:  # perhaps since the last call
            self.decoder.refresh()
        chains = [
            Episode(self.rules, task, number, member, seed)
            for number, task in zip(
                range(len(tasks)) if numbers is None else numbers, tasks, strict=True
            )
            for member in range(group)
        ]
        # Each call starts anew, so that a resumed run makes the batches of an unbroken one.
        self._longest = len(self.policy.prompt) + self.config.profile_budget
        if watch is not None:
            for place, chain in enumerate(chains):
                chain.watch = partial(watch, place)
        done = 0
        fresh = list(chains)
        going = DecodingBatch([], [], None)
        waiting: list[DecodingBatch] = []
        while fresh or going.rows or waiting:
            most = self._rows_that_fit()
            held = len(going.rows) + sum(len(w.rows) for w in waiting)
            room = most - held
            # Joining a running batch copies its cache, so rows come in by half batches.
            if fresh and (2 * room >= most or not held):
                admitted, fresh = fresh[:room], fresh[room:]
                going.extend(self.decoder.start([c.row for c in admitted]))
            parked_rows = sum(len(w.rows) for w in waiting)
            # Tools run in batches: when nobody decodes, or when most rows wait.
            if waiting and (not going.rows or parked_rows >= 2 * len(going.rows)):
                going.extend(self._answer(_join(waiting)))
                waiting = []
            going, halted = self.decoder.draw(going)
            if halted.rows:
                # What the chains said decides who waits for a tool and who has ended.
                keep = [i for i, row in enumerate(halted.rows) if row.tag.acted()]
                done += len(halted.rows) - len(keep)
                if keep:
                    parked = halted.take(keep) if len(keep) < len(halted.rows) else halted
                    mx.eval([c.state for c in parked.cache])
                    waiting.append(parked)
                if progress is not None:
                    progress(done)
            if going.rows:
                self.decoder.advance(going)
        return [chain.rollout() for chain in chains]

    def _rows_that_fit(self) -> int:
        """How many rows may be held: as many as memory has room for at the length seen so far.

        Caches grow in steps of 256 tokens, and while one grows or a row leaves there are two.
        """
        length = -(-self._longest // 256) * 256
        fitting = self.memory // max(1, 2 * length * self._token_bytes)
        return int(max(1, min(self._max_rows, fitting)))

    def _answer(self, batch: DecodingBatch) -> DecodingBatch:
        """Run the tools of all rows that wait, in one call, and put the answers in."""
        chains: list[Episode] = [row.tag for row in batch.rows]
        asking = [c for c in chains if c.request is not None]
        found = self._tools.run([c.request for c in asking if c.request is not None])
        answers = dict(zip((id(c) for c in asking), found, strict=True))
        for chain in chains:
            chain.answer(answers.get(id(chain)), self._memory)
            self._longest = max(self._longest, len(chain.row.tokens))
        return self.decoder.resume(batch)


def _join(parts: list[DecodingBatch]) -> DecodingBatch:
    joined = parts[0]
    for part in parts[1:]:
        joined.extend(part)
    return joined
