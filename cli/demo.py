"""``qagent demo``: draws the story (`qagent_mlx.demo.story`), then plays a session (see `play`)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import note, out, print_table, safe, waiting
from .evaluate import draw_report
from .inventory import draw_products
from .memory import draw_memory
from .options import opened
from .param_types import POLICY
from .progress import TrainingProgress

if TYPE_CHECKING:
    from qagent_mlx.demo.config import DemoConfig
    from qagent_mlx.demo.story import Scene
    from qagent_mlx.shop.shop import Shop


@click.command()
@click.option(
    "--shop",
    "shop_path",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-shop"),
    show_default="./demo-shop",
    metavar="PATH",
    help="The demo's own shop; or one of yours, to play a user of it.",
)
@click.option("--steps", default=25, show_default=True, type=click.IntRange(1), help="Of GRPO.")
@click.option("--sft-steps", default=20, show_default=True, type=click.IntRange(1), help="Of SFT.")
@click.option(
    "--cases",
    default=500,
    show_default=True,
    type=click.IntRange(2),
    help="Test cases of the evaluations.",
)
@click.option(
    "--policy",
    type=POLICY,
    help="The story's base model [default: sample], or who recommends in a session "
    "[default: grpo, else the newest].",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--yes", is_flag=True, help="Make an earlier demo shop anew without asking.")
@click.option("--session", "only_session", is_flag=True, help="Only the session.")
@click.option("--keep", is_flag=True, help="Keep in a shop of yours what you do in the session.")
def demo(
    *,
    shop_path: Path,
    steps: int,
    sft_steps: int,
    cases: int,
    policy: str | None,
    seed: int,
    yes: bool,
    only_session: bool,
    keep: bool,
) -> None:
    """Show the whole story on the sample shop, then play a user.

    Ingest, memory, search, an SFT cold start, GRPO with rewards from the live inventory, and
    an evaluation before and after. It takes some minutes on a laptop. The session at the end
    is skipped when stdin is no terminal.

    With --shop PATH of a shop of your own there is only the session, on a copy of it that is
    thrown away at the end, unless you say --keep. Commands may also be piped in.
    """
    from qagent_mlx.demo.config import DemoConfig
    from qagent_mlx.demo.playground import borrowed
    from qagent_mlx.demo.story import SHOP_NAME
    from qagent_mlx.shop.sample import is_sample_shop

    mine = is_sample_shop(shop_path, SHOP_NAME)
    yours = not mine and (shop_path / "shop.json").exists()
    if not only_session and not yours:
        if mine and not yes and sys.stdin.isatty():
            click.confirm(f"Make the demo shop {shop_path} anew?", abort=True, err=True)
        _tell(shop_path, DemoConfig(policy or "sample", sft_steps, steps, cases, seed=seed))
        if not sys.stdin.isatty():
            return
        policy = None
    if not yours or keep:
        with opened(shop_path, write=True) as shop:
            _play(shop, policy, seed)
        return
    for name in ("SIGHUP", "SIGTERM"):  # a terminal that is closed leaves no copy behind
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    note("playing on a copy of the shop; --keep plays on the shop itself")
    with borrowed(shop_path) as shop:
        _play(shop, policy, seed)


def _play(shop: Shop, policy: str | None, seed: int) -> None:
    from qagent_mlx.demo.playground import Session
    from qagent_mlx.policy.registry import default_policy, open_policy

    from .play import play

    with waiting("opening the shop"):
        name = policy or default_policy(shop, "grpo")
        session = Session(shop, open_policy(shop, name), seed=seed, name=name)
        _ = session.recommender
    play(session)


# ---------------------------------------------------------------- the story


class _Steps:
    """Passes steps of training on to the progress of the scene that is running."""

    def __init__(self) -> None:
        self.progress: TrainingProgress | None = None

    def begin(self, scene: Scene, config: DemoConfig) -> None:
        """A scene begins; two of them train."""
        steps = {"sft": config.sft_steps, "grpo": config.grpo_steps}.get(scene.name)
        if steps is not None:
            self.progress = TrainingProgress(steps, scene.name.upper())
            self.progress.__enter__()

    def end(self) -> None:
        """A scene has ended."""
        if self.progress is not None:
            self.progress.__exit__(None, None, None)
            self.progress = None

    def __call__(self, row: dict[str, Any]) -> None:
        """A step's metrics."""
        if self.progress is not None:
            self.progress(row)


def _tell(path: Path, config: DemoConfig) -> None:
    from qagent_mlx.demo.story import story

    console = out()
    steps, number = _Steps(), 0
    try:
        for scene in story(path, config, note, steps):
            if scene.data is None:
                number += 1
                console.print()
                console.print(safe(f"{number}. {scene.title}", "bold cyan"))
                steps.begin(scene, config)
            else:
                steps.end()
                _DRAW[scene.name](scene.data)
    finally:
        steps.end()


def _draw_ingest(data: dict[str, Any]) -> None:
    out().print(
        f"{data['products']:,} products, {data['events']:,} events of {data['users']:,} users in "
        f"{data['sessions']:,} sessions, in {data['seconds']:.0f} s"
    )


def _draw_search(data: dict[str, Any]) -> None:
    out().print(safe(f"query: {data['query']}"))
    draw_products(data["results"], "$")


def _draw_training(data: dict[str, Any]) -> None:
    out().print(
        f"{data['steps']} steps in {data['seconds']:.0f} s; reward "
        f"{data['reward_first']:.3f} → {data['reward_last']:.3f}"
    )


def _draw_user(data: dict[str, Any]) -> None:
    from qagent_mlx.utils.text import query_key

    case, answers = data["case"], data["answers"]
    console = out()
    console.print(safe(f"{case.user_id} at {case.as_of:%Y-%m-%d %H:%M} UTC"))
    columns = [answer.recommendations for answer in answers.values()]
    rows = []
    for rank, cells in enumerate(zip_longest(*columns), 1):
        queries = [recommendation.query if recommendation else "" for recommendation in cells]
        right = [bool(query) and query_key(query) == case.query_key for query in queries]
        marked = zip(queries, right, strict=True)
        rows.append((rank, *(safe(f"{q} ✓", "bold green") if ok else q for q, ok in marked)))
    print_table(("#", *(f"after {name.upper()}" for name in answers)), rows, numbers=("#",))
    console.print(safe(f"what the user then searched: {case.query}", "bold"))


_DRAW: dict[str, Callable[[Any], None]] = {
    "ingest": _draw_ingest,
    "memory": draw_memory,
    "search": _draw_search,
    "sft": _draw_training,
    "before": draw_report,
    "grpo": _draw_training,
    "after": draw_report,
    "user": _draw_user,
}
