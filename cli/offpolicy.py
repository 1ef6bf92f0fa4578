"""``qagent offpolicy``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import note, print_table, say, waiting
from .impressions import since_option, until_option
from .options import Output, json_option, opened, shop_option
from .param_types import POLICY

if TYPE_CHECKING:
    from qagent_mlx.agent.recommend import RecommendRequest


@click.command()
@click.option("--policy", type=POLICY, required=True, help="Policy that was not shown.")
@click.option(
    "-n",
    "number",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    metavar="N",
    help="Answers that are looked at: the last ones.",
)
@since_option
@until_option
@shop_option
@json_option
def offpolicy(
    policy: str, number: int, since: datetime | None, until: datetime | None, shop_path: Path
) -> Output:
    """Estimate how often users would have taken a policy's queries, from what they were shown.

    It needs answers of a server that explores a little: qagent serve --explore 0.1. Without any,
    and where the policy shows what could not have been shown, the estimate says what it assumes.
    """
    from qagent_mlx.agent.recommend import Recommender
    from qagent_mlx.errors import QAgentError
    from qagent_mlx.live.off_policy import estimate, logged_answers
    from qagent_mlx.memory.types import Moment
    from qagent_mlx.policy.registry import open_policy

    with opened(shop_path) as shop:
        logged = logged_answers(shop, since=since, until=until)[-number:]
        if not logged:
            raise QAgentError("nothing was shown in that time; see: qagent impressions list")
        with waiting("opening the shop"):
            recommender = Recommender(shop, open_policy(shop, policy))
        with waiting(f"recommending {len(logged):,} times"):
            moments = [Moment(answer.user_id, answer.moment) for answer in logged]
            agent = recommender.agent
            profiles = recommender.memory.profiles(moments, agent.sections, agent.profile_budget)
            requests: list[RecommendRequest] = []
            for profile, answer in zip(profiles, logged, strict=True):
                moment, size = answer.moment, len(answer.keys)
                requests += recommender.requests([profile], moment, size, rules_at=moment)
            answers = recommender.answer(requests)
    slates = [[r.query for r in answer.recommendations] for answer in answers]
    report = estimate(logged, slates)
    document = {"policy": policy, **report.to_dict()}

    def draw() -> None:
        if report.assumption:
            note(report.assumption)
        rows = []
        for name in ("logged", "ips", "snips", "dr"):
            found = getattr(report, name)
            values = (found.value, found.lo, found.hi)
            rows.append((name, *("-" if value is None else f"{value:.4f}" for value in values)))
        print_table(
            ("taken an answer", "estimate", "from", "to"), rows, numbers=("estimate", "from", "to")
        )
        say(
            f"{report.answers:,} answers of {report.users:,} users, {report.explored:.0%} in an "
            f"order partly left to chance; {policy} would have shown the same at "
            f"{report.agreeing:.0%} of the places, and what could have been shown there at "
            f"{report.supported:.0%}"
        )

    return Output(document, draw)
