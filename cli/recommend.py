"""``qagent recommend``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .chains import chain_lines
from .common import (
    PLAIN,
    as_of_option,
    default_policy,
    dtype_option,
    emit,
    json_option,
    opened,
    out,
    plain_table,
    shop_option,
    short,
    shown,
    waiting,
)

if TYPE_CHECKING:
    from qagent_mlx.agent.recommend import Recommender, UserRecommendations


@click.command()
@click.argument("users", nargs=-1, required=True, type=PLAIN, metavar="USER...")
@click.option("-k", default=5, show_default=True, type=click.IntRange(1, 100), help="How many.")
@click.option("--policy", type=PLAIN, help="Which policy.  [default: grpo, else the newest]")
@click.option(
    "--group", default=8, show_default=True, type=click.IntRange(1, 256), help="Chains a user."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of sampling.")
@click.option("--chains", is_flag=True, help="Also show the chains that led there.")
@as_of_option
@dtype_option
@shop_option
@json_option
def recommend(
    *, users: tuple[str, ...], k: int, policy: str | None, group: int, seed: int, chains: bool,
    as_of: datetime | None, dtype: str | None, shop_path: Path, as_json: bool,
) -> None:  # fmt: skip
    """Recommend queries to each USER, with the products they retrieve and why.

    With --json one user gives one object (user, recommendations, latency_ms); several users
    give {"users": [...]} with such an object for each. A user without events is a new user.
    """
    from qagent_mlx.agent.recommend import Recommender
    from qagent_mlx.policy.registry import open_policy

    with opened(shop_path) as shop:
        name = policy or default_policy(shop, "grpo")
        with waiting("recommending"):
            recommender = Recommender(shop, open_policy(shop, name, dtype or ""), group=group)
            found = recommender.recommend(users, k, as_of, seed)
    documents = [document(recommender, one, chains) for one in found]
    if as_json:
        emit(documents[0] if len(documents) == 1 else {"users": documents})
        return
    for one in documents:
        draw_recommendations(one, f"policy {name}")


def document(
    recommender: Recommender, found: UserRecommendations, chains: bool = False
) -> dict[str, Any]:
    """One user's recommendations with DESIGN's keys."""
    from qagent_mlx.inspection import with_titles

    made: dict[str, Any] = {
        "user": found.user_id,
        "as_of": found.as_of.isoformat(),
        "recommendations": [
            {
                "query": r.query,
                "score": r.score,
                "products": with_titles(recommender.search, r.products),
                "reason": r.reason,
                "votes": r.votes,
            }
            for r in found.recommendations
        ],
        "latency_ms": round(found.latency_ms, 1),
    }
    if chains:
        decode = recommender.policy.codec.decode
        made["chains"] = [
            {
                "query": c.query,
                "finish": c.finish,
                "validated": c.validated,
                "text": decode(c.tokens[c.prompt_length :]),
            }
            for c in found.chains
        ]
    return made


def draw_recommendations(one: dict[str, Any], by: str) -> None:
    """Print one user's recommendations, and the chains when they are there."""
    from rich.text import Text

    console = out()
    console.print(
        shown(f"{one['user']} at {one['as_of'][:16].replace('T', ' ')} UTC", "bold"),
        shown(f"({by}, {one['latency_ms']:.0f} ms)", "dim"),
    )
    if not one["recommendations"]:
        console.print("  nothing to recommend: no chain searched a query that found products")
    table = plain_table("#", "query", "votes", "top products and reason", numbers=("#",))
    table.columns[3].ratio = 1
    table.columns[1].max_width = 26
    for number, r in enumerate(one["recommendations"], 1):
        lines = [shown(short(p["title"], 44)) for p in r["products"][:2]]
        lines.append(shown(r["reason"], "dim"))
        table.add_row(
            str(number), shown(r["query"], "bold"), f"{r['score']:.0%}", Text("\n").join(lines)
        )
    if one["recommendations"]:
        console.print(table)
    for number, chain in enumerate(one.get("chains", ()), 1):
        console.print()
        state = "validated" if chain["validated"] else chain["finish"]
        console.print(f"chain {number}: {state}", style="bold")
        # All chains read the same memory; once is enough.
        for line in chain_lines(chain["text"], memory=number == 1):
            console.print(line, soft_wrap=False)
    console.print()
