"""The session of ``qagent demo``: reads commands, and draws what a `PlaygroundSession` returns."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .chains import chain_lines, chance_text
from .console import note, out, print_table, safe, short, waiting
from .inventory import draw_products
from .memory import draw_memory
from .param_types import MOMENT, PLAIN
from .progress import TrainingProgress

if TYPE_CHECKING:
    from rich.text import Text

    from qagent_mlx.agent.recommend import UserRecommendations
    from qagent_mlx.demo.playground import ObservedTurn, PlaygroundSession

HELP = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").rstrip()
PROFILE_LINES = 5  # that a watched chain shows of the memory
TRAINING_STEPS = 10
WHY_HIDDEN = {  # by the name of the query's `Fit`
    "FIT": "a rule or wish keeps it out, or others add more to the row",
    "FIRST_SOLD_OUT": "the product that it finds first is sold out",
    "UNANSWERED": "no product that it finds has all its words",
    "JUST_BOUGHT": "it is too soon after the user bought such a thing",
    "SOLD_OUT": "all that it finds is sold out",
}


def play(session: PlaygroundSession) -> None:
    """Read commands until the end."""
    from qagent_mlx.errors import QAgentError

    console = out()
    console.print()
    _print("You play a user of the shop. What you do is remembered.", "bold")
    console.print(HELP)
    console.print()
    _print(f"you are {session.user}; {session.policy_name} recommends")
    with _line_editing(session):
        while True:
            try:
                line = _read_line(session)
            except EOFError:
                console.print()
                return
            except KeyboardInterrupt:
                console.print("  (quit, or Ctrl-D, leaves)")
                continue
            name, _, argument = line.strip().partition(" ")
            name = name.lower()
            if name in ("quit", "exit", "q"):
                return
            try:
                if name in _HANDLERS:
                    _HANDLERS[name](session, PLAIN.convert(argument.strip(), None, None))
                elif name:
                    _print(f"unknown command {name!r}; try help")
            except QAgentError as error:
                console.print(safe(error), soft_wrap=True)
            except KeyboardInterrupt:
                console.print("interrupted")


def _read_line(session: PlaygroundSession) -> str:
    from qagent_mlx.utils.text import strip_control_characters

    where = f" @ {session.moment:%Y-%m-%d %H:%M}" if session.moment else ""
    line = input(strip_control_characters(f"{session.user}{where}> "))
    if not sys.stdin.isatty():
        print(strip_control_characters(line))  # a transcript of piped commands reads like a session
    return line


def _print(text: Any, style: str = "") -> None:
    out().print(safe(text, style))


# Commands: each gets the session and the rest of the line


def _find_users(session: PlaygroundSession, text: str) -> None:
    users = session.find_users(text)
    if not users:
        _print("nobody")
        return
    rows = [
        (user.user, f"{user.events:,}", f"{user.last:%Y-%m-%d %H:%M}", short(user.query, 40))
        for user in users
    ]
    print_table(("user", "events", "last seen", "last query"), rows, numbers=("events",))


def _change_user(change: str, session: PlaygroundSession, user: str) -> None:
    if change == "use":
        if not user:
            _print("which user? user ID; find one with: users TEXT")
            return
        session.switch_user(user)
    else:
        getattr(session, change)()
    view = session.memory()
    known = f"{view.events:,} events" if view.events else "a new user"
    _print(f"you are {session.user}: {known}; try memory, recommend")


def _recommend(session: PlaygroundSession, _: str) -> None:
    console = out()
    currency = session.shop.config.currency

    def watch(seen: ObservedTurn) -> None:
        if seen.chain == 0:
            for line in _turn_lines(seen, currency):
                console.print(line, no_wrap=True, overflow="ellipsis")

    result = session.recommend(watch)
    chains = len(result.chains)
    _print(f"{chains} chains in {result.latency_ms:,.0f} ms; this was the first", "dim")
    if not result.recommendations:
        _print("nothing to recommend: no chain searched a query that found products")
        return
    rows = []
    for rank, r in enumerate(result.recommendations, 1):
        top = session.products(r.products[:1], result.as_of)
        title = top[0].title if top else ""
        votes = f"{r.votes}/{chains}" if r.votes else "fills up"
        cells = (chance_text(r.chance), votes, title)
        rows.append((rank, safe(short(r.query, 30), "bold"), *cells))
    columns = ("#", "query", "chance", "votes", "top product")
    print_table(columns, rows, numbers=("#", "chance", "votes"), wide="top product", cut=True)
    for item in session.recommender.given_way(result):
        choice = f"{item.query}, the choice of {item.votes} of {chains} chains, gives way"
        _print(f"{choice}: {WHY_HIDDEN[item.fit.name]}", "dim")


def _turn_lines(seen: ObservedTurn, currency: str) -> Iterator[Text]:
    """A turn with its time, and the tool's results below it."""
    from rich.text import Text

    time, indent = (f"{seen.seconds:6.2f} s  ", "dim"), " " * 12
    turn, profile = seen.turn, seen.profile
    if turn.kind == "fetch":
        size = f"{len(profile.lines)} lines, {profile.tokens} tokens" if profile else ""
        yield Text.assemble(time, ("fetch memory  ", "bold"), (size, "dim"))
        lines = profile.text.splitlines() if profile else []
        for line in lines[:PROFILE_LINES]:
            yield Text.assemble(indent, safe(line, "dim"))
        if len(lines) > PROFILE_LINES:
            yield Text(f"{indent}and {len(lines) - PROFILE_LINES} more", "dim")
        return
    style = "bold green" if turn.kind == "recommend" else "bold cyan"
    label = "no more searches" if turn.kind == "refused" else turn.kind
    yield Text.assemble(time, (f"{label:<14}", style), safe(turn.query, "bold"))
    if turn.kind == "search" and not seen.products:
        yield Text(f"{indent}nothing found", "dim")
    for rank, product in enumerate(seen.products[:2], 1):
        price = "" if product.price is None else f"  {currency}{product.price:,.2f}"
        stock = "" if product.in_stock else "  sold out"
        title = short(product.title, 44)
        yield Text.assemble(indent, safe(f"{rank}. {title}{price}{stock}", "dim"))


def _why(session: PlaygroundSession, _: str) -> None:
    console = out()
    result = session.last
    if result is None:
        _print("nothing was recommended yet; try recommend")
        return
    lines = {line.query: line.text for line in result.profile.lines if line.query is not None}
    for rank, r in enumerate(result.recommendations, 1):
        votes = f"{r.votes} of {len(result.chains)} chains" if r.votes else "no chain: fills up"
        if r.chance is not None:
            votes += f"; the next search with a chance of {chance_text(r.chance)}"
        console.print(safe(f"{rank}. {r.query}", "bold"), safe(f"({votes})", "dim"))
        console.print(safe(f"   {r.reason}"), soft_wrap=True)
        if r.query in lines:
            console.print(safe(f"   memory says: {lines[r.query]}", "dim"), soft_wrap=True)
    best = result.recommendations[0].query if result.recommendations else ""
    chain = next((chain for chain in result.chains if chain.query == best), None)
    if chain is not None:
        console.print()
        _print(f"a chain that led to {best}, as the policy wrote it", "bold")
        text = session.policy.codec.decode(chain.tokens[chain.prompt_length :])
        for line in chain_lines(text, memory=False):
            console.print(line)


def _search(session: PlaygroundSession, query: str) -> None:
    draw_products(session.search(query), session.shop.config.currency)


def _engage(event: str, session: PlaygroundSession, number: str) -> None:
    """Click or buy what has a number on the screen; to click a query is to search it."""
    chosen = session.choose(int(number) if number.isdecimal() else 0)
    if event == "click" and not chosen.product_id:
        _search(session, chosen.query)
        return
    session.engage(chosen, event)
    verb = "bought" if event == "purchase" else "clicked"
    text = f"{verb} {chosen.title}; now try memory or recommend"
    out().print(safe(text), soft_wrap=True)


def _travel(session: PlaygroundSession, time: str) -> None:
    if not time:
        _print("as-of which moment? as-of 2026-03-01T12:00, or as-of now")
        return
    try:
        session.travel(None if time == "now" else MOMENT.convert(time, None, None))
    except click.BadParameter as error:
        _print(error.message)
        return
    view = session.memory()
    _print(
        f"it is {view.as_of:%Y-%m-%d %H:%M} UTC; {session.user} has done {view.events:,} things "
        "so far"
    )


def _compare(session: PlaygroundSession, policy: str) -> None:
    if not policy:
        _print(f"with which policy? {', '.join(session.policies)}, sample")
        return
    with waiting("recommending"):
        results = session.compare(policy)
    _draw_side_by_side(results)


def _train(session: PlaygroundSession, count: str) -> None:
    if count and not (count.isdecimal() and 1 <= int(count) <= 10_000):
        _print("how many steps? train 10")
        return
    steps, before = int(count or TRAINING_STEPS), session.policy_name
    with TrainingProgress(steps, "GRPO") as progress:
        result = session.train(steps, progress, note)
    report, after = result.report, session.policy_name
    text = (
        f"{report.steps} steps in {report.seconds:.0f} s; reward "
        f"{report.reward_first:.3f} -> {report.reward_last:.3f}; "
        f"{after} recommends from now on"
    )
    out().print(safe(text), soft_wrap=True)
    _draw_side_by_side({f"before: {before}": result.before, f"after: {after}": result.after})


def _draw_side_by_side(results: dict[str, UserRecommendations]) -> None:
    """Recommendations of several policies; a query that the first does not have is "(new)"."""
    first, *others = results.values()
    known = {r.query for r in first.recommendations}
    columns = [
        [
            f"{short(r.query, 24)} {f'{r.votes}/{len(result.chains)}' if r.votes else 'fills up'}"
            f"{'' if result is first or r.query in known else ' (new)'}"
            for r in result.recommendations
        ]
        for result in (first, *others)
    ]
    rows = [(rank, *cells) for rank, cells in enumerate(zip_longest(*columns, fillvalue=""), 1)]
    print_table(("#", *results), rows, numbers=("#",), widths=dict.fromkeys(results, 36))


_HANDLERS: dict[str, Callable[[PlaygroundSession, str], None]] = {
    "users": _find_users,
    "user": partial(_change_user, "use"),
    "next": partial(_change_user, "next_user"),
    "random": partial(_change_user, "random_user"),
    "new": partial(_change_user, "new_user"),
    "memory": lambda session, _: draw_memory(session.memory()),
    "recommend": _recommend,
    "why": _why,
    "search": _search,
    "click": partial(_engage, "click"),
    "buy": partial(_engage, "purchase"),
    "as-of": _travel,
    "compare": _compare,
    "train": _train,
    "help": lambda *_: out().print(HELP),
    "?": lambda *_: out().print(HELP),
}
COMMANDS = (*(name for name in _HANDLERS if name != "?"), "quit")

# The line that is typed: history on the arrow keys and completion on Tab


@contextlib.contextmanager
def _line_editing(session: PlaygroundSession) -> Iterator[None]:
    """Edit lines where the system has readline."""
    try:
        import readline
    except ImportError:  # some Pythons are built without it; lines are read all the same
        yield
        return

    def complete(text: str, state: int) -> str | None:
        words = completions(session, readline.get_line_buffer(), text)
        return words[state] if state < len(words) else None

    completer, delimiters = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    try:
        yield
    finally:
        readline.set_completer(completer)
        readline.set_completer_delims(delimiters)


def completions(session: PlaygroundSession, line: str, text: str) -> list[str]:
    """What Tab offers for the word ``text`` at the end of a line."""
    name, blank, _ = line.lstrip().partition(" ")
    if not blank:
        return [f"{command} " for command in COMMANDS if command.startswith(text)]
    words: Sequence[str] = ()
    if name == "user":
        words = session.users
    elif name == "compare":
        words = [*session.policies, "sample"]
    elif name == "as-of":
        words = ("now",)
    elif name in ("click", "buy"):
        words = [str(number) for number in range(1, len(session.screen) + 1)]
    return [word for word in words if word.startswith(text)]
