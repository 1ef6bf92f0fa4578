"""``qagent experiment``: two systems share the users of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import note, print_table, say, waiting
from .groups import Group
from .options import Output, json_option, opened, shop_option
from .param_types import PLAIN

_TITLES = {
    "ctr": "CTR",
    "cvr": "guided CVR",
    "orders": "orders an answer",
    "revenue": "revenue an answer",
}
_GUARDS = {"latency_ms": "latency, ms", "fallbacks": "fallbacks", "empty": "empty answers"}


@click.group(cls=Group)
def experiment() -> None:
    """Two systems share the users of a server, each user one for the whole time.

    A system is agent (the policy that recommends), memory (the user's memory without a chain) or
    a policy of the shop. Servers take part as soon as an experiment starts, without a restart.
    """


@experiment.command()
@click.argument("name", type=PLAIN)
@click.option(
    "--control",
    default="memory",
    show_default=True,
    type=PLAIN,
    metavar="SYSTEM",
    help="System that users have now.",
)
@click.option(
    "--treatment",
    default="agent",
    show_default=True,
    type=PLAIN,
    metavar="SYSTEM",
    help="System that may take its place.",
)
@click.option(
    "--share",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the users who get the treatment.",
)
@click.option(
    "--interleave",
    is_flag=True,
    help="Both share each answer (team draft): who is preferred, with far fewer users.",
)
@click.option(
    "--lift",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Relative change of CTR (taps a row that was shown) that is looked for; says how many "
    "users it takes.",
)
@shop_option
@json_option
def start(
    name: str,
    control: str,
    treatment: str,
    share: float,
    interleave: bool,
    lift: float,
    shop_path: Path,
) -> Output:
    """Start the experiment NAME."""
    from qagent_mlx.live.experiment_report import users_needed
    from qagent_mlx.live.experiments import AGENT, MEMORY, Kind, start_experiment
    from qagent_mlx.live.limits import shop_time
    from qagent_mlx.policy.registry import resolve

    with opened(shop_path, write=True) as shop:
        for system in {control, treatment} - {AGENT, MEMORY}:
            resolve(shop, system)  # refuses unknown ones
        needed = None if interleave else users_needed(shop, lift)
        kind: Kind = "interleave" if interleave else "split"
        made = start_experiment(shop, name, control, treatment, share, shop_time(shop), kind)
    document = {**made.to_dict(), "lift": lift, "users_needed": needed}

    def draw() -> None:
        if interleave:
            say(f"{name} runs: {control} and {treatment} share every answer")
            say("next: qagent experiment status")
            return
        say(f"{name} runs: {share:.0%} of the users get {treatment}, the others {control}")
        if needed is None:
            say("how many users it takes is not known yet: too little was shown before")
        else:
            say(f"a lift of {lift:.0%} takes about {needed:,} users for a power of 80 %")
        say("next: qagent experiment status")

    return Output(document, draw)


@experiment.command()
@shop_option
@json_option
def status(shop_path: Path) -> Output:
    """Say which experiment runs, and list the others."""
    from qagent_mlx.live.experiments import experiments

    with opened(shop_path) as shop:
        known = [e.to_dict() for e in experiments(shop)]

    def draw() -> None:
        if not known:
            say("no experiment yet; next: qagent experiment start NAME")
            return
        rows = [
            (
                *(e["name"], e["control"], e["treatment"]),
                f"{e['share']:.0%}" if e["kind"] == "split" else "both",
                *(e["started"][:16], e["stopped"][:16] if e["stopped"] else "runs"),
            )
            for e in known
        ]
        print_table(("name", "control", "treatment", "share", "from", "until"), rows)

    return Output({"experiments": known}, draw)


@experiment.command()
@shop_option
@json_option
def stop(shop_path: Path) -> Output:
    """Stop the experiment that runs: everybody gets the serving policy again."""
    from qagent_mlx.live.experiments import stop_experiment
    from qagent_mlx.live.limits import shop_time

    with opened(shop_path, write=True) as shop:
        stopped = stop_experiment(shop, shop_time(shop))
    text = f"{stopped.name} is stopped; next: qagent experiment report {stopped.name}"
    return Output(stopped.to_dict(), lambda: say(text))


@experiment.command()
@click.argument("name", type=PLAIN, required=False)
@shop_option
@json_option
def report(name: str | None, shop_path: Path) -> Output:
    """Report what experiment NAME has shown so far; by default the one that runs, else the last.

    The intervals may be looked at any time: they hold at all times at once. p is that of a test
    at one moment that was planned before.
    """
    from qagent_mlx.live.experiments import find_experiment
    from qagent_mlx.live.interleaving import report_of
    from qagent_mlx.live.limits import shop_time

    with opened(shop_path) as shop, waiting("counting"):
        found = report_of(shop, find_experiment(shop, name), shop_time(shop)).to_dict()
    is_shared = found["experiment"]["kind"] == "interleave"
    return Output(found, lambda: _draw_preferences(found) if is_shared else _draw(found))


def _draw_preferences(found: dict[str, Any]) -> None:
    about = found["experiment"]
    until = "" if about["stopped"] else " so far"
    say(f"{about['name']}{until}: {about['control']} and {about['treatment']}, interleaved", "bold")
    rows = []
    for name, title in (("taken", "answers won by a query"), ("bought", "by a purchase")):
        won = found[name]
        interval = "-" if won["lo"] is None else f"{won['lo']:+.2%} to {won['hi']:+.2%}"
        rows.append(
            (
                *(title, f"{won['control']:,}", f"{won['treatment']:,}"),
                *(f"{won['margin']:+.2%}", interval),
                "-" if won["p"] is None else f"{won['p']:.3f}",
                "yes" if won["significant"] else "",
            )
        )
    columns = ("", about["control"], about["treatment"], "margin", "any time", "p, once", "clear")
    print_table(columns, rows, numbers=columns[1:6])
    say(f"{found['users']:,} users, {found['answers']:,} answers that both shared")


def _draw(found: dict[str, Any]) -> None:
    about, users = found["experiment"], found["users"]
    until = "" if about["stopped"] else " so far"
    say(f"{about['name']}{until}: {about['control']} against {about['treatment']}", "bold")
    if found["split"]["broken"]:
        note(
            f"the arms' sizes cannot be chance (p {found['split']['p']:.1g}): something loses "
            "users of one arm, so believe nothing below"
        )
    rows = []
    for name, title in _TITLES.items():
        effect = found[name]
        form = "{:,.2f}" if name == "revenue" else "{:.2%}"
        interval = "-"
        if effect["lo"] is not None:
            interval = f"{form.format(effect['lo'])} to {form.format(effect['hi'])}"
        rows.append(
            (
                title,
                *(form.format(effect[arm]) for arm in ("control", "treatment")),
                "-" if effect["lift"] is None else f"{effect['lift']:+.1%}",
                interval,
                "-" if effect["p"] is None else f"{effect['p']:.3f}",
                "yes" if effect["significant"] else "",
            )
        )
    columns = ("", "control", "treatment", "lift", "difference, any time", "p, once", "clear")
    print_table(columns, rows, numbers=columns[1:6])
    guards = [
        (title, *(f"{found['guardrails'][name][arm]:,.3f}" for arm in ("control", "treatment")))
        for name, title in _GUARDS.items()
    ]
    print_table(("guardrail", "control", "treatment"), guards, numbers=("control", "treatment"))
    say(
        f"{users['control']:,} and {users['treatment']:,} users, "
        f"{found['answers']['control']:,} and {found['answers']['treatment']:,} answers; "
        f"the split is as drawn (p {found['split']['p']:.2f})"
        if not found["split"]["broken"]
        else f"{users['control']:,} and {users['treatment']:,} users"
    )
