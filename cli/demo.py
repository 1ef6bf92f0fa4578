"""``qagent demo``: draws the story of `qagent_mlx.demo`, then plays a session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .chains import chain_lines
from .common import PLAIN, note, opened, out, plain_table, shown, waiting
from .evaluate import draw_report
from .inventory import draw_products
from .memory import draw_memory
from .progress import TrainingProgress
from .recommend import document, draw_recommendations

if TYPE_CHECKING:
    from qagent_mlx.demo import DemoConfig, Scene
    from qagent_mlx.session import Session


@click.command()
@click.option(
    "--shop", "shop_path", type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-shop"), show_default="./demo-shop", metavar="PATH",
    help="The demo's own shop; one that the demo made earlier is made anew.",
)  # fmt: skip
@click.option("--steps", default=25, show_default=True, type=click.IntRange(1), help="Of GRPO.")
@click.option("--sft-steps", default=20, show_default=True, type=click.IntRange(1), help="Of SFT.")
@click.option(
    "--cases", default=500, show_default=True, type=click.IntRange(2),
    help="Test cases of the evaluations.",
)  # fmt: skip
@click.option("--policy", default="sample", show_default=True, type=PLAIN, help="The base model.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--yes", is_flag=True, help="Make an earlier demo shop anew without asking.")
@click.option("--session", "only_session", is_flag=True, help="Only the session.")
def demo(
    *, shop_path: Path, steps: int, sft_steps: int, cases: int, policy: str, seed: int, yes: bool,
    only_session: bool,
) -> None:  # fmt: skip
    """Show the whole story on the sample shop, then play a user.

    Ingest, memory, search, an SFT cold start, GRPO with rewards from the live inventory, and
    an evaluation before and after. It takes some minutes on a laptop. The session at the end
    is skipped when stdin is no terminal.
    """
    from qagent_mlx.demo import NAME, DemoConfig
    from qagent_mlx.sample import is_sample

    if not only_session:
        exists = is_sample(shop_path, NAME)
        if exists and not yes and sys.stdin.isatty():
            click.confirm(f"Make the demo shop {shop_path} anew?", abort=True, err=True)
        _tell(shop_path, DemoConfig(policy, sft_steps, steps, cases, seed=seed))
    if only_session or sys.stdin.isatty():
        with opened(shop_path, write=True) as shop:
            from qagent_mlx.policy.registry import open_policy
            from qagent_mlx.session import Session

            with waiting("opening the shop"):
                session = Session(shop, open_policy(shop, "grpo"), seed=seed)
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
    from qagent_mlx.demo import story

    console = out()
    steps, number = _Steps(), 0
    try:
        for scene in story(path, config, note, steps):
            if scene.data is None:
                number += 1
                console.print()
                console.print(shown(f"{number}. {scene.title}", "bold cyan"))
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
    out().print(shown(f"query: {data['query']}"))
    draw_products(data["results"], "$")


def _draw_training(data: dict[str, Any]) -> None:
    out().print(
        f"{data['steps']} steps in {data['seconds']:.0f} s; reward "
        f"{data['reward_first']:.3f} → {data['reward_last']:.3f}"
    )


def _draw_user(data: dict[str, Any]) -> None:
    from qagent_mlx.text import query_key

    case, answers = data["case"], data["answers"]
    console = out()
    console.print(shown(f"{case.user_id} at {case.as_of:%Y-%m-%d %H:%M} UTC"))
    table = plain_table("#", *(f"after {name.upper()}" for name in answers), numbers=("#",))
    lists = [answer.recommendations for answer in answers.values()]
    for place in range(max(map(len, lists), default=0)):
        cells = []
        for ranked in lists:
            query = ranked[place].query if place < len(ranked) else ""
            right = bool(query) and query_key(query) == case.query_key
            cells.append(shown(f"{query} ✓" if right else query, "bold green" if right else ""))
        table.add_row(str(place + 1), *cells)
    console.print(table)
    console.print(shown(f"what the user then searched: {case.query}", "bold"))


_DRAW: dict[str, Callable[[dict[str, Any]], None]] = {
    "ingest": _draw_ingest,
    "memory": draw_memory,
    "search": _draw_search,
    "sft": _draw_training,
    "before": draw_report,
    "grpo": _draw_training,
    "after": draw_report,
    "user": _draw_user,
}


# ---------------------------------------------------------------- the session

HELP = """\
user ID | next | random   be another user
new                       be somebody of whom nothing is known
memory                    what is remembered of the user
recommend                 recommend queries to the user
search TEXT               search as the user
click N                   follow query N, or click product N
buy N                     buy product N
why                       where the recommendations came from
help, quit"""


def play(session: Session) -> None:
    """Read commands until the end."""
    from qagent_mlx.errors import QAgentError

    console = out()
    console.print()
    console.print(shown("You play a user of the shop. What you do is remembered.", "bold"))
    console.print(HELP)
    console.print(shown(f"you are {session.user}"))
    while True:
        try:
            line = input(f"{session.user}> ")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        name, _, rest = line.strip().partition(" ")
        rest = PLAIN.convert(rest.strip(), None, None)
        if name in ("quit", "exit", "q"):
            return
        try:
            _obey(session, name.lower(), rest)
        except QAgentError as error:
            console.print(shown(error), soft_wrap=True)


def _obey(session: Session, name: str, rest: str) -> None:
    console = out()
    if not name:
        return
    if name == "help":
        console.print(HELP)
    elif name in ("user", "next", "random", "new"):
        if name == "user" and not rest:
            console.print("which user? user ID")
            return
        change = {"next": session.next_user, "random": session.random_user, "new": session.new_user}
        user = change[name]() if name in change else session.use(rest)
        console.print(shown(f"you are {user}"))
    elif name == "memory":
        draw_memory(session.memory())
    elif name == "recommend":
        _recommend(session)
    elif name == "search":
        _search(session, rest)
    elif name in ("click", "buy"):
        chosen = session.choose(int(rest) if rest.isdecimal() else 0)
        if name == "click" and not chosen.product_id:
            _search(session, chosen.query)
            return
        session.engage(chosen, "purchase" if name == "buy" else "click")
        done = "bought" if name == "buy" else "clicked"
        console.print(shown(f"{done} {chosen.title}; now try memory or recommend"))
    elif name == "why":
        _why(session)
    else:
        console.print(shown(f"unknown command {name!r}; try help"))


def _recommend(session: Session) -> None:
    with waiting("recommending"):
        found = session.recommend()
    draw_recommendations(document(session.recommender, found), "click N to follow one")


def _search(session: Session, query: str) -> None:
    draw_products(session.search(query), session.shop.config.currency)


def _why(session: Session) -> None:
    console = out()
    if session.last is None:
        console.print("nothing was recommended yet; try recommend")
        return
    for r in session.last.recommendations:
        votes = f"{r.votes} of {len(session.last.chains)} chains"
        console.print(shown(f"{r.query}: {r.reason}; {votes}"))
    best = session.last.recommendations[0].query if session.last.recommendations else ""
    chain = next((c for c in session.last.chains if c.query == best), None)
    if chain is not None:
        console.print(shown(f"a chain that led to {best}", "bold"))
        text = session.policy.codec.decode(chain.tokens[chain.prompt_length :])
        for line in chain_lines(text):
            console.print(line)
