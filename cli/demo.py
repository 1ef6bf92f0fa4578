"""``qagent demo``: draws the story (`qagent_mlx.demo.story`), then plays a session (see `play`)."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qagent_mlx.demo.config import DemoConfig
from qagent_mlx.utils.settings import merge

from .chains import chain_lines
from .console import note, out, print_table, safe, say, waiting
from .evaluate import draw_report
from .inventory import draw_products
from .memory import draw_memory
from .options import Changes, opened, setting_options
from .param_types import FOLDER, POLICY, SERVING
from .progress import TrainingProgress

if TYPE_CHECKING:
    from qagent_mlx.demo.story import ChangedAnswer
    from qagent_mlx.demo.writing import WritingScene
    from qagent_mlx.shop.shop import Shop


@click.command()
@click.option(
    "--shop",
    "shop_path",
    type=FOLDER,
    default=Path("demo-shop"),
    show_default="./demo-shop",
    metavar="PATH",
    help="The demo's own shop; or one of yours, to play a user of it.",
)
@setting_options(
    DemoConfig, *("grpo_steps", "sft_steps", "cases", "seed"), into="changes", grpo_steps="--steps"
)
@click.option(
    "--policy",
    type=POLICY,
    help="The story's base model [default: sample], or who recommends in a session "
    f"[default: {SERVING}].",
)
@click.option("--yes", is_flag=True, help="Make an earlier demo shop anew without asking.")
@click.option("--session", "only_session", is_flag=True, help="Play a session, without the story.")
@click.option("--keep", is_flag=True, help="Keep in a shop of yours what you do in the session.")
def demo(
    shop_path: Path, changes: Changes, policy: str | None, yes: bool, only_session: bool, keep: bool
) -> None:
    """Show the whole story on the sample shop, then play a user.

    Ingest, memory, search, an SFT cold start, GRPO with rewards from the live inventory, and
    an evaluation before and after. It takes some minutes on a laptop. The session at the end
    is skipped when stdin is no terminal.

    With --shop PATH of a shop of your own there is only the session, on a copy of it that is
    thrown away at the end, unless you say --keep. Commands may also be piped in.
    """
    from qagent_mlx.demo.playground import temporary_copy
    from qagent_mlx.demo.story import SHOP_NAME
    from qagent_mlx.shop.sample import is_sample_shop

    config = merge(DemoConfig(parent=policy or "sample"), changes)
    is_demo_shop = is_sample_shop(shop_path, SHOP_NAME)
    is_users_shop = not is_demo_shop and (shop_path / "shop.json").exists()
    if not only_session and not is_users_shop:
        if is_demo_shop and not yes and sys.stdin.isatty():
            click.confirm(f"Make the demo shop {shop_path} anew?", abort=True, err=True)
        _tell(shop_path, config)
        if not sys.stdin.isatty():
            return
        policy = None
    if not is_users_shop or keep:
        with opened(shop_path, write=True) as shop:
            _play(shop, policy, config.seed)
        return
    for name in ("SIGHUP", "SIGTERM"):  # a terminal that is closed leaves no copy behind
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    note("playing on a copy of the shop; --keep plays on the shop itself")
    with temporary_copy(shop_path) as shop:
        _play(shop, policy, config.seed)


def _play(shop: Shop, policy: str | None, seed: int) -> None:
    from qagent_mlx.demo.playground import PlaygroundSession
    from qagent_mlx.policy.registry import open_policy, serving_policy

    from .play import play

    with waiting("opening the shop"):
        name = policy or serving_policy(shop)
        session = PlaygroundSession(shop, open_policy(shop, name), seed=seed, name=name)
        _ = session.recommender
    play(session)


def _tell(path: Path, config: DemoConfig) -> None:
    """Run the story's scenes, and draw what each brought."""
    from qagent_mlx.demo.story import story

    steps = {"sft": config.sft_steps, "grpo": config.grpo_steps}  # of the scenes that train
    progress: TrainingProgress | None = None

    def on_step(metrics: dict[str, Any]) -> None:
        if progress is not None:
            progress(metrics)

    number = 0
    with contextlib.ExitStack() as stack:
        for scene in story(path, config, note, on_step):
            if scene.data is not None:
                stack.close()
                _DRAW[scene.name](scene.data)
                continue
            number += 1
            out().print()
            say(f"{number}. {scene.title}", "bold cyan")
            if scene.name in steps:
                title = scene.name.upper()
                progress = stack.enter_context(TrainingProgress(steps[scene.name], title))


def _draw_ingest(data: dict[str, Any]) -> None:
    say(
        f"{data['products']:,} products, {data['events']:,} events of {data['users']:,} users in "
        f"{data['sessions']:,} sessions, in {data['seconds']:.0f} s"
    )


def _draw_search(data: dict[str, Any]) -> None:
    say(f"query: {data['query']}")
    draw_products(data["results"], "$")


def _draw_training(data: dict[str, Any]) -> None:
    say(
        f"{data['steps']} steps in {data['seconds']:.0f} s; reward "
        f"{data['reward_first']:.3f} → {data['reward_last']:.3f}"
    )


def _draw_user(data: ChangedAnswer) -> None:
    from qagent_mlx.utils.text import query_key

    case, names = data.case, list(data.queries)
    say(
        f"the first query is the user's next one only after {names[1].upper()} in {data.gained} of "
        f"{data.cases} cases, only before it in {data.lost}"
        + ("; one of the former:" if data.gained else "")
    )
    say(f"{case.user_id} at {case.as_of:%Y-%m-%d %H:%M} UTC")
    rows = []
    for rank, queries in enumerate(zip_longest(*data.queries.values(), fillvalue=""), 1):
        right = [bool(query) and query_key(query) == case.query_key for query in queries]
        marked = zip(queries, right, strict=True)
        rows.append((rank, *(safe(f"{q} ✓", "bold green") if ok else q for q, ok in marked)))
    print_table(("#", *(f"after {name.upper()}" for name in names)), rows, numbers=("#",))
    say(f"what the user then searched: {case.query}", "bold")


def _draw_writing(scene: WritingScene) -> None:
    from rich.text import Text

    from qagent_mlx.evaluate.tables import percent

    say(
        "The query log is hidden: memory has views and purchases only. The shipped policy "
        "`writer` practised here to write."
    )
    rows = []
    for result in scene.report.systems:
        rows.append((result.name, *(percent(result.metrics[name]) for name in _ROW_METRICS)))
    print_table(("percent", *_ROW_METRICS.values()), rows, numbers=tuple(_ROW_METRICS.values()))
    for row in scene.examples:
        cells = []
        for query in row.queries:
            mark = "✎ " if query.own else "★ " if query.new else ""
            cells.append(safe(f"{mark}{query.query}", "bold green" if query.engaged else ""))
        say(f"{row.case.user_id}, who went on to search {row.case.query}:")
        out().print(Text("  "), Text(" · ").join(cells))
    if scene.chain:
        say(f"A chain that writes {scene.chain_query}:", "bold")
        for line in chain_lines(scene.chain):
            out().print(line)
    queries = scene.queries
    say(
        f"{len(queries)} queries, {sum(q.own for q in queries)} of them in the agent's own words "
        f"(✎), {sum(q.new for q in queries)} that nobody had ever typed here (★, and some of ✎); "
        f"{sum(q.products > 0 for q in queries)} find products. Green: it led to what the user "
        "then took.",
        "bold",
    )


_ROW_METRICS = {  # of rows of five queries -> heading
    "row_hit@10": "row led to what was taken",
    "i_hit@10": "its first query did",
    "own_words": "own words",
}


_DRAW: dict[str, Callable[[Any], None]] = {
    "ingest": _draw_ingest,
    "memory": draw_memory,
    "search": _draw_search,
    "sft": _draw_training,
    "before": draw_report,
    "grpo": _draw_training,
    "after": draw_report,
    "user": _draw_user,
    "writing": _draw_writing,
}
