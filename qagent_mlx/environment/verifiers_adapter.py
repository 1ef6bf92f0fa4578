"""A shop as an environment of `verifiers`, for its evaluations and for trainers that speak it.

    environment = load_environment("shop")
    environment.evaluate_sync(client=…, model="…", num_examples=20)

A model writes its actions, such as ``<search>running shoes</search>``, and any OpenAI-compatible
server will do: ``mlx_lm.server`` among them. It is for the interface that `verifiers` has up to
0.1 (``load_environment``, `MultiTurnEnv`); its later stack of task sets and harnesses is another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..protocol.config import AgentConfig
from ..utils.atomic_files import read_json
from ..utils.settings import merge
from .cases import evenly_spaced
from .shop_environment import OVER, ShopEnvironment
from .text_environment import Step


def load_environment(
    shop: str, split: str = "test", limit: int = 0, policy: str = "", **options: Any
) -> Any:
    """The environment of a shop's cases.

    Args:
        shop: A shop's folder.
        split: Whose cases are the data set.
        limit: Number of cases, spread over the split; 0 for all.
        policy: Folder of a fused policy of this package: episodes are as it was trained.
        options: Of `ShopEnvironment.open`.

    Raises:
        QAgentError: `verifiers` is not installed, or has another interface.
    """
    try:
        import verifiers
        from datasets import Dataset
        from verifiers.types import UserMessage

        multi_turn, rubric_class = verifiers.MultiTurnEnv, verifiers.Rubric
    except (ImportError, AttributeError) as error:
        raise QAgentError(
            'verifiers 0.1 is needed; run: pip install "qagent-mlx[verifiers]"'
        ) from error
    environment = ShopEnvironment.open(shop, **{**_as_trained(policy), **options})
    cases = environment.cases(split)
    if limit:
        cases = evenly_spaced(cases, limit)
    rows = [
        {"prompt": environment.reset(case), "answer": "", "info": {"case": case}} for case in cases
    ]

    class ShopTurns(multi_turn):  # type: ignore[misc, valid-type]
        """Answers each action of a model, and notes the step that ends its episode."""

        async def setup_state(self, state: Any) -> Any:
            state["shop"] = environment.fork()
            state["shop"].reset(state["info"]["case"])
            return state

        async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
            step: Step = state["shop"].step(_text(messages[-1]))
            answer = [UserMessage(content=step.observation or OVER)]
            if step.done:
                state["step"] = step
                state["final_env_response"] = answer
            return answer

    rubric = rubric_class(
        funcs=[_component(name) for name in environment.weights],
        weights=_shares(environment.weights),
    )
    turns = environment.agent.max_searches + 4  # the environment itself ends a chain before
    return ShopTurns(
        dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        rubric=rubric,
        max_turns=turns,
    )


def _as_trained(policy: str) -> dict[str, Any]:
    """The options with which episodes are those that a policy was trained in."""
    if not policy:
        return {}
    told = read_json(Path(policy) / "policy.json", "the policy").get("agent", {})
    return {"agent": merge(AgentConfig(), told, "policy"), "example": True}


def _shares(weights: Any) -> list[float]:
    total = sum(weights.values())
    return [value / total for value in weights.values()]


def _component(name: str) -> Any:
    async def reward(state: Any, **_: Any) -> float:
        if state.get("step") is None:  # the model stopped before it recommended
            state["step"] = state["shop"].give_up()
        return float(state["step"].rewards[name])

    reward.__name__ = name
    return reward


def _text(message: Any) -> str:
    content = message["content"] if isinstance(message, dict) else message.content
    return content if isinstance(content, str) else ""
