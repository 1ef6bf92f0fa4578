"""What users of an experiment get: an arm's answer, or one that two of them share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from ..agent.recommend import RecommendRequest
from ..live.experiments import AGENT, MEMORY, Experiment
from ..shop.policy_folders import parse_reference
from .arms import Arms
from .decode_units import Asked
from .requests import PendingRequest, RecommendResponse
from .timed_decoder import TimedDecoder


class ArmAnswers:
    """Answers with the systems of an experiment. For the worker's thread.

    Args:
        arms: The systems beside the policy that recommends.
        decoder: Has memory's lines, and knows how long decodes take.
        seed: Of the sampling.
    """

    def __init__(self, arms: Arms, decoder: TimedDecoder, seed: int) -> None:
        self._arms, self._decoder, self._seed = arms, decoder, seed

    def answer(
        self,
        experiment: Experiment,
        pending: Sequence[PendingRequest],
        requests: Sequence[RecommendRequest],
    ) -> Asked:
        """Answer those whom the agent has no part in; returns the others."""
        return [
            (waiting, request)
            for waiting, request in zip(pending, requests, strict=True)
            if self._needs_agent(experiment.systems(waiting.user), waiting, request)
        ]

    def _needs_agent(
        self, systems: tuple[str, ...], waiting: PendingRequest, request: RecommendRequest
    ) -> bool:
        """Answer a request with its systems; True where the agent has a part."""
        others = {s: self._response(s, waiting, request) for s in systems if s != AGENT}
        if None in others.values():
            self._decoder.fall_back([(waiting, request)])
            return False

        def mix(agents: RecommendResponse | None) -> RecommendResponse:
            responses = [agents if s == AGENT else others[s] for s in systems]
            control, treatment = responses[0], responses[-1]
            assert control is not None and treatment is not None
            if len(systems) == 1:
                return control
            return self._arms.mixed(control, treatment, waiting.k)

        if AGENT in systems:
            waiting.mix = mix
            return True
        response = mix(None)
        self._decoder.remember(waiting, response)
        if not waiting.future.done():
            waiting.future.set_result(response)
        return False

    def _response(
        self, system: str, waiting: PendingRequest, request: RecommendRequest
    ) -> RecommendResponse | None:
        """What another system than the agent answers; None where there is no time for it."""
        if system == MEMORY:
            self._decoder.read_fallbacks([(waiting, request)])
            assert waiting.fallback is not None
            return replace(waiting.fallback, reason="experiment")
        if waiting.deadline - time.monotonic() < self._decoder.pace.seconds(1):
            return None
        (result,) = self._arms.answer(system, [request], self._seed)
        name, version = parse_reference(self._arms.reference(system))
        return RecommendResponse(
            result.recommendations, "agent", result.as_of, name, version, request.group
        )
