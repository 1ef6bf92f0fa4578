"""``qagent recommend``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .chains import chain_lines
from .common import (
    PLAIN,
    POLICY,
    ShardType,
    as_of_option,
    dtype_option,
    emit,
    json_option,
    note,
    opened,
    out,
    plain_table,
    shop_option,
    short,
    shown,
    waiting,
)
from .progress import CountProgress

if TYPE_CHECKING:
    from qagent_mlx.agent.recommend import Recommender, UserRecommendations


@click.command()
@click.argument("users", nargs=-1, type=PLAIN, metavar="[USER...]")
@click.option("-k", default=5, show_default=True, type=click.IntRange(1, 100), help="How many.")
@click.option("--policy", type=POLICY, help="Which policy.  [default: grpo, else the newest]")
@click.option(
    "--group",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Chains a user.  [default: 2 of a policy trained by GRPO, else 8]",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of sampling.")
@click.option("--chains", is_flag=True, help="Also show the chains that led there.")
@click.option("--all", "everybody", is_flag=True, help="Everybody in the log; needs --out.")
@click.option(
    "--users",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="Users: an id a line, or a Parquet column user_id; needs --out.",
)
@click.option(
    "--out",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.parquet",
    help="Where many users' recommendations go; a run that stopped goes on from its parts.",
)
@click.option(
    "--shard",
    type=ShardType(),
    metavar="I/N",
    help="Only the I-th of N shares of the users, for N processes at once; under mlx.launch "
    "each rank takes its own and writes FILE-I-of-N.parquet.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Processes for many users, on this machine.  [default: one a core, at most 4]",
)
@as_of_option
@dtype_option
@shop_option
@json_option
def recommend(
    *,
    users: tuple[str, ...],
    k: int,
    policy: str | None,
    group: int | None,
    seed: int,
    chains: bool,
    everybody: bool,
    file: Path | None,
    path: Path | None,
    shard: tuple[int, int] | None,
    workers: int | None,
    as_of: datetime | None,
    dtype: str | None,
    shop_path: Path,
    as_json: bool,
) -> None:
    """Recommend queries to each USER, with the products they retrieve and why.

    With --json one user gives one object (user, recommendations, latency_ms); several users
    give {"users": [...]} with such an object for each. A user without events is a new user.
    """
    from qagent_mlx.agent.recommend import Recommender
    from qagent_mlx.policy.registry import default_policy, open_policy

    many = everybody or file is not None
    if sum((bool(users), everybody, file is not None)) != 1:
        raise click.UsageError("name one or more users, or give --all or --users FILE")
    if many != (path is not None):
        raise click.UsageError("--all and --users go with --out FILE.parquet")
    if many and chains:
        raise click.UsageError("--chains is for users that are named one by one")
    if shard and not many:
        raise click.UsageError("--shard goes with --all or --users")
    if workers and not many:
        raise click.UsageError("--workers goes with --all or --users")
    with opened(shop_path) as shop:
        name = policy or default_policy(shop, "grpo")
        with waiting("opening the shop"):
            recommender = Recommender(shop, open_policy(shop, name, dtype or ""), group=group)
        if path is not None:
            _bulk(recommender, file, path, shard, workers, k, as_of, seed, dtype or "", as_json)
            return
        with waiting("recommending"):
            found = recommender.recommend(users, k, as_of, seed)
        strangers = [user for user in dict.fromkeys(users) if not shop.has_events(user)]
    if strangers:  # perhaps a slip of the pen
        note(f"no events yet, so recommended to as a new user: {', '.join(strangers[:5])}")
    documents = [document(recommender, one, chains) for one in found]
    if as_json:
        emit(documents[0] if len(documents) == 1 else {"users": documents})
        return
    for one in documents:
        draw_recommendations(one, f"policy {name}")


def _bulk(
    recommender: Recommender,
    file: Path | None,
    path: Path,
    shard: tuple[int, int] | None,
    workers: int | None,
    k: int,
    as_of: datetime | None,
    seed: int,
    dtype: str,
    as_json: bool,
) -> None:
    from qagent_mlx.serve.batch import (
        FEW_USERS,
        BulkConfig,
        all_users,
        bulk_recommend,
        default_workers,
        launched_shard,
        read_users,
        shard_of,
        shard_path,
    )

    launched = launched_shard() if shard is None else None
    if launched:
        shard, path = launched, shard_path(path, *launched)
    users = read_users(file) if file else all_users(recommender.shop, as_of)
    if shard:
        users = shard_of(users, *shard)
    if workers is None:
        # A launched rank has its own core already; a few users are done before others start.
        workers = 1 if shard or len(users) < FEW_USERS else default_workers()
    with CountProgress("recommending", len(users)) as progress:
        report = bulk_recommend(
            recommender,
            users,
            path,
            BulkConfig(k, as_of, seed, workers, dtype),
            lambda now: progress(now.done, now.fresh, now.seconds, now.left),
        ).to_dict()
    if as_json:
        emit(report)
        return
    again = f" ({report['resumed']:,} were there already)" if report["resumed"] else ""
    out().print(
        shown(
            f"{report['recommendations']:,} recommendations for {report['users']:,} users{again} "
            f"in {report['seconds']:.0f} s, {report['users_per_s']:.1f} users/s: {path}"
        ),
        soft_wrap=True,
    )


def document(
    recommender: Recommender, found: UserRecommendations, chains: bool = False
) -> dict[str, Any]:
    """One user's recommendations with DESIGN's keys."""
    from qagent_mlx.agent.recommend import recommendations_to_dicts

    catalog = recommender.search.catalog
    titles = dict(zip(catalog.ids, catalog.titles, strict=True))
    made: dict[str, Any] = {
        "user": found.user_id,
        "as_of": found.as_of.isoformat(),
        "recommendations": recommendations_to_dicts(found.recommendations, titles),
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
