"""``qagent recommend``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from msgspec import Meta

from qagent_mlx.serve.config import BulkConfig
from qagent_mlx.utils.settings import merge

from .chains import chain_lines, chance_text, votes_text
from .console import note, out, print_table, safe, say, short, waiting
from .options import Changes, Output, json_option, opened, setting_options, shop_option
from .param_types import DTYPE, EXISTING_FILE, FILE, ID, POLICY, SERVING, ShardType
from .progress import CountProgress

if TYPE_CHECKING:
    from qagent_mlx.agent.recommend import Recommender, UserRecommendations


@dataclass(frozen=True)
class Recipients:
    """Many users, and the file for their recommendations."""

    everybody: Annotated[bool, Meta(description="Everybody in the log; needs --out.")] = False
    file: Annotated[
        Path | None,
        Meta(description="Users: an id a line, or a Parquet column user_id; needs --out."),
    ] = None
    out: Annotated[
        Path | None,
        Meta(
            description="Where many users' recommendations go, in the form that its ending names: "
            ".csv, .jsonl or .parquet; a run that stopped goes on from its parts."
        ),
    ] = None
    shard: Annotated[
        tuple[int, int] | None,
        Meta(
            description="Only the I-th of N shares of the users, for N processes at once; under "
            "mlx.launch each rank takes its own and writes FILE-I-of-N.parquet."
        ),
    ] = None

    @property
    def many(self) -> bool:
        """Whether everybody or a file of users is meant."""
        return self.everybody or self.file is not None


@click.command()
@click.argument("users", nargs=-1, type=ID, metavar="[USER...]")
@click.option("--policy", type=POLICY, help=f"Policy that recommends.  [default: {SERVING}]")
@click.option(
    "--group",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Chains for each user.  [default: 2 of a policy trained by GRPO, else 8]",
)
@click.option("--chains", is_flag=True, help="Also show the chains that led there.")
@click.option("--record", is_flag=True, help="Record the answers as shown (qagent impressions).")
@setting_options(
    Recipients,
    into="recipients",
    build=True,
    everybody="--all",
    file={"flags": ("--users",), "type": EXISTING_FILE, "metavar": "FILE"},
    out={"metavar": "FILE", "type": FILE},
    shard={"type": ShardType(), "metavar": "I/N"},
)
@setting_options(
    BulkConfig,
    *("k", "seed", "workers", "as_of", "dtype"),
    into="changes",
    workers={"metavar": "N"},
    as_of={"metavar": "T"},
    dtype={"type": DTYPE},
)
@shop_option
@json_option
def recommend(
    users: tuple[str, ...],
    policy: str | None,
    group: int | None,
    chains: bool,
    record: bool,
    recipients: Recipients,
    changes: Changes,
    shop_path: Path,
) -> Output:
    """Recommend queries to each USER, with the products they retrieve and why.

    With --json one user gives one object (user, recommendations, latency_ms); several users
    give {"users": [...]} with such an object for each. A user without events is a new user.
    """
    from qagent_mlx.agent.recommend import Recommender, shown_answer
    from qagent_mlx.live.shown import record_shown
    from qagent_mlx.policy.registry import open_policy, serving_policy

    _check_usage(users, recipients, chains, "workers" in changes)
    config = replace(merge(BulkConfig(), changes), record=record)
    if recipients.out is not None:
        return recommend_to_many(recipients, recipients.out, config, shop_path, policy, group)
    with opened(shop_path) as shop:
        name = policy or serving_policy(shop)
        with waiting("opening the shop"):
            recommender = Recommender(shop, open_policy(shop, name, config.dtype), group=group)
        with waiting("recommending"):
            results = recommender.recommend(users, config.k, config.as_of, config.seed)
        answers = [shown_answer(recommender.policy, result) for result in results] if record else []
        if answers:
            record_shown(shop, answers)
        strangers = [user for user in dict.fromkeys(users) if not shop.has_events(user)]
    if strangers:  # perhaps a slip of the pen
        note(f"no events yet, so recommended to as a new user: {', '.join(strangers[:5])}")
    documents = [_document(recommender, result, chains) for result in results]
    has_chances = recommender.policy.calibration_of(recommender.agent) is not None
    for document, answer in zip(documents, answers, strict=False):
        document["recommendation_id"] = answer.recommendation_id

    def draw() -> None:
        for document in documents:
            draw_recommendations(document, f"policy {name}", has_chances)

    return Output(documents[0] if len(documents) == 1 else {"users": documents}, draw)


def _check_usage(
    users: tuple[str, ...], recipients: Recipients, chains: bool, workers: bool
) -> None:
    """Refuse options that do not go together."""
    from qagent_mlx.utils.table_files import check_table_name

    many = recipients.many
    if bool(users) + recipients.everybody + (recipients.file is not None) != 1:
        raise click.UsageError("name one or more users, or give --all or --users FILE")
    if many != (recipients.out is not None):
        raise click.UsageError("--all and --users go with --out FILE.parquet (or .csv, .jsonl)")
    if many and chains:
        raise click.UsageError("--chains is for users that are named one by one")
    for flag, given in (("--shard", recipients.shard), ("--workers", workers)):
        if given and not many:
            raise click.UsageError(f"{flag} goes with --all or --users")
    if recipients.out is not None:
        check_table_name(recipients.out)


def recommend_to_many(
    recipients: Recipients,
    path: Path,
    config: BulkConfig,
    shop_path: Path,
    policy: str | None = None,
    group: int | None = None,
) -> Output:
    """Recommend to everybody, or to a file of users, into a file."""
    from qagent_mlx.agent.recommend import Recommender
    from qagent_mlx.policy.registry import open_policy, serving_policy
    from qagent_mlx.serve import batch

    with opened(shop_path, snapshot=True) as shop:
        with waiting("opening the shop"):
            opened_policy = open_policy(shop, policy or serving_policy(shop), config.dtype)
            recommender = Recommender(shop, opened_policy, group=group)
        shard = recipients.shard
        if shard is None and (shard := batch.launched_shard()):
            path = batch.shard_path(path, *shard)
        if recipients.file is not None:
            users = batch.read_users(recipients.file)
        else:
            users = batch.all_users(shop, config.as_of)
        if shard:  # each of them has a core already
            users = batch.shard_of(users, *shard)
            config = replace(config, workers=config.workers or 1)
        with CountProgress("recommending", len(users)) as progress:
            report = batch.bulk_recommend(
                recommender,
                users,
                path,
                config,
                lambda now: progress(now.done, now.fresh, now.seconds, now.left),
            )
    resumed = f" ({report.resumed:,} were there already)" if report.resumed else ""
    text = (
        f"{report.recommendations:,} recommendations for {report.users:,} users{resumed} in "
        f"{report.seconds:.0f} s, {report.users_per_s:.1f} users/s: {path}"
    )
    return Output(report.to_dict(), lambda: say(text))


def _document(
    recommender: Recommender, result: UserRecommendations, chains: bool
) -> dict[str, Any]:
    """One user's recommendations as JSON has them."""
    catalog = recommender.search.catalog
    titles = dict(zip(catalog.ids, catalog.titles, strict=True))
    document = result.to_dict(titles)
    if chains:
        decode = recommender.policy.codec.decode
        document["chains"] = [
            {
                "query": chain.query,
                "finish": chain.finish,
                "validated": chain.validated,
                "text": decode(chain.tokens[chain.prompt_length :]),
            }
            for chain in result.chains
        ]
    return document


def _about_chances(recommendations: list[dict[str, Any]], are_learned: bool) -> str:
    if not are_learned:
        return "no chance was learned for this policy; see: qagent policies calibrate --help"
    if all(r["chance"] is None for r in recommendations):
        return "no chance: this policy's were learned of users with a history"
    return "chance: that the user's next search that leads to something is this very query"


def draw_recommendations(document: dict[str, Any], by: str, has_chances: bool) -> None:
    """Print one user's recommendations, and the chains when they are there.

    ``has_chances`` says whether chances were learned for the policy.
    """
    from rich.text import Text

    console = out()
    console.print(
        safe(f"{document['user']} at {document['as_of'][:16].replace('T', ' ')} UTC", "bold"),
        safe(f"({by}, {document['latency_ms']:.0f} ms)", "dim"),
    )
    if not document["recommendations"]:
        console.print("  nothing to recommend: no chain searched a query that found products")
    else:
        rows = []
        for rank, r in enumerate(document["recommendations"], 1):
            lines = [safe(short(product["title"], 44)) for product in r["products"][:2]]
            products = Text("\n").join([*lines, safe(r["reason"], "dim")])
            cells = (chance_text(r["chance"]), votes_text(r["votes"], r["score"]))
            rows.append((rank, safe(r["query"], "bold"), *cells, products))
        columns = ("#", "query", "chance", "votes", "top products and reason")
        print_table(columns, rows, numbers=("#", "chance"), wide=columns[4], widths={"query": 26})
        console.print(
            safe(_about_chances(document["recommendations"], has_chances), "dim"), soft_wrap=True
        )
    for number, chain in enumerate(document.get("chains", ()), 1):
        console.print()
        state = "validated" if chain["validated"] else chain["finish"]
        console.print(f"chain {number}: {state}", style="bold")
        # All chains read the same memory; once is enough.
        for line in chain_lines(chain["text"], memory=number == 1):
            console.print(line)
    console.print()
