"""The session of ``qagent demo``: reads commands, and draws what a `Session` answers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from .chains import chain_lines
from .common import MOMENT, PLAIN, note, out, plain_table, short, shown, waiting
from .inventory import draw_products
from .memory import draw_memory
from .progress import TrainingProgress

if TYPE_CHECKING:
    from qagent_mlx.agent.recommend import UserRecommendations
    from qagent_mlx.demo.playground import Seen, Session

HELP = """\
users [TEXT]              find users, by id or by what they searched
user ID, next, random     be another user
new                       be somebody of whom nothing is known
memory                    what is remembered: profile and interest graph
recommend                 recommend to the user, and watch a chain at work
why                       where the recommendations came from
search TEXT               search as the user
click N, buy N            follow query N; click or buy product N
as-of TIME, as-of now     look at another moment
compare POLICY            what another policy recommends to the same user
train [N]                 N steps of GRPO on this shop, before and after (10)
help, quit"""
COMMANDS = (
    "users",
    "user",
    "next",
    "random",
    "new",
    "memory",
    "recommend",
    "why",
    "search",
    "click",
    "buy",
    "as-of",
    "compare",
    "train",
    "help",
    "quit",
)
LINES = 5  # of the memory, in a chain that is watched
STEPS = 10


def play(session: Session) -> None:
    """Read commands until the end."""
    from qagent_mlx.errors import QAgentError

    console = out()
    console.print()
    console.print(shown("You play a user of the shop. What you do is remembered.", "bold"))
    console.print(HELP)
    console.print(shown(f"\nyou are {session.user}; {session.policy_name} recommends"))
    with _editing(session):
        while True:
            try:
                line = _read(session)
            except EOFError:
                console.print()
                return
            except KeyboardInterrupt:
                console.print("  (quit, or Ctrl-D, leaves)")
                continue
            name, _, rest = line.strip().partition(" ")
            rest = PLAIN.convert(rest.strip(), None, None)
            if name in ("quit", "exit", "q"):
                return
            try:
                _obey(session, name.lower(), rest)
            except QAgentError as error:
                console.print(shown(error), soft_wrap=True)
            except KeyboardInterrupt:
                console.print("interrupted")


def _read(session: Session) -> str:
    from qagent_mlx.utils.text import strip_control_characters

    where = f" @ {session.moment:%Y-%m-%d %H:%M}" if session.moment else ""
    line = input(strip_control_characters(f"{session.user}{where}> "))
    if not sys.stdin.isatty():
        print(strip_control_characters(line))  # a transcript of piped commands reads like a session
    return line


# ---------------------------------------------------------------- commands


def _obey(session: Session, name: str, rest: str) -> None:
    console = out()
    if not name:
        return
    if name in ("help", "?"):
        console.print(HELP)
    elif name == "users":
        _draw_users(session.find_users(rest))
    elif name in ("user", "next", "random", "new"):
        _be(session, name, rest)
    elif name == "memory":
        draw_memory(session.memory())
    elif name == "recommend":
        _recommend(session)
    elif name == "why":
        _why(session)
    elif name == "search":
        _search(session, rest)
    elif name in ("click", "buy"):
        _act(session, name, rest)
    elif name == "as-of":
        _travel(session, rest)
    elif name == "compare":
        _compare(session, rest)
    elif name == "train":
        _train(session, rest)
    else:
        console.print(shown(f"unknown command {name!r}; try help"))


def _be(session: Session, name: str, rest: str) -> None:
    if name == "user" and not rest:
        out().print("which user? user ID; find one with: users TEXT")
        return
    change = {"next": session.next_user, "random": session.random_user, "new": session.new_user}
    user = change[name]() if name in change else session.use(rest)
    view = session.memory()
    known = f"{view.events:,} events" if view.events else "a new user"
    out().print(shown(f"you are {user}: {known}; try memory, recommend"))


def _act(session: Session, name: str, rest: str) -> None:
    chosen = session.choose(int(rest) if rest.isdecimal() else 0)
    if name == "click" and not chosen.product_id:
        _search(session, chosen.query)
        return
    session.engage(chosen, "purchase" if name == "buy" else "click")
    done = "bought" if name == "buy" else "clicked"
    out().print(shown(f"{done} {chosen.title}; now try memory or recommend"), soft_wrap=True)


def _travel(session: Session, rest: str) -> None:
    if not rest:
        out().print("as-of which moment? as-of 2026-03-01T12:00, or as-of now")
        return
    try:
        moment = None if rest == "now" else MOMENT.convert(rest, None, None)
    except click.BadParameter as error:
        out().print(shown(error.message))
        return
    session.travel(moment)
    seen = session.memory()
    out().print(
        shown(
            f"it is {seen.as_of:%Y-%m-%d %H:%M} UTC; {session.user} has done "
            f"{seen.events:,} things so far"
        )
    )


# ---------------------------------------------------------------- drawing


def _draw_users(found: Sequence[dict[str, Any]]) -> None:
    if not found:
        out().print("nobody")
        return
    table = plain_table("user", "events", "last seen", "last query", numbers=("events",))
    for one in found:
        table.add_row(
            shown(one["user"]),
            f"{one['events']:,}",
            f"{one['last']:%Y-%m-%d %H:%M}",
            shown(short(one["query"], 40)),
        )
    out().print(table)


def _recommend(session: Session) -> None:
    console = out()
    currency = session.shop.config.currency

    def watch(seen: Seen) -> None:
        if seen.chain == 0:
            for line in _turn_lines(seen, currency):
                console.print(line, no_wrap=True, overflow="ellipsis")

    found = session.recommend(watch)
    chains = f"{len(found.chains)} chains in {found.latency_ms:,.0f} ms"
    console.print(shown(f"{chains}; this was the first", "dim"))
    if not found.recommendations:
        console.print("nothing to recommend: no chain searched a query that found products")
        return
    table = plain_table("#", "query", "votes", "top product", numbers=("#", "votes"))
    table.columns[3].ratio = 1
    for number, r in enumerate(found.recommendations, 1):
        top = session.products(r.products[:1], found.as_of)
        table.add_row(
            str(number),
            shown(short(r.query, 30), "bold"),
            f"{r.votes}/{len(found.chains)}",
            shown(short(top[0]["title"], 36)) if top else "",
        )
    console.print(table)


def _turn_lines(seen: Seen, currency: str) -> Iterator[Any]:
    """A turn with its time, and what the tool answered below it."""
    from rich.text import Text

    time = f"{seen.seconds:6.2f} s  "
    turn = seen.turn
    if turn.kind == "fetch":
        profile = seen.profile
        size = f"{len(profile.lines)} lines, {profile.tokens} tokens" if profile else ""
        yield Text.assemble((time, "dim"), ("fetch memory  ", "bold"), (size, "dim"))
        lines = profile.text.splitlines() if profile else []
        for line in lines[:LINES]:
            yield Text.assemble(" " * 12, shown(line, "dim"))
        if len(lines) > LINES:
            yield Text(f"{'':12}and {len(lines) - LINES} more", "dim")
        return
    style = "bold green" if turn.kind == "recommend" else "bold cyan"
    label = {"refused": "no more searches"}.get(turn.kind, turn.kind)
    yield Text.assemble((time, "dim"), (f"{label:<14}", style), shown(turn.query, "bold"))
    if turn.kind == "search" and not seen.products:
        yield Text(f"{'':12}nothing found", "dim")
    for number, product in enumerate(seen.products[:2], 1):
        price = "" if product["price"] is None else f"  {currency}{product['price']:,.2f}"
        gone = "" if product["in_stock"] else "  sold out"
        title = short(product["title"], 44)
        yield Text.assemble(" " * 12, shown(f"{number}. {title}{price}{gone}", "dim"))


def _search(session: Session, query: str) -> None:
    draw_products(session.search(query), session.shop.config.currency)


def _why(session: Session) -> None:
    console = out()
    found = session.last
    if found is None:
        console.print("nothing was recommended yet; try recommend")
        return
    lines = {line.query: line.text for line in found.profile.lines if line.query is not None}
    for number, r in enumerate(found.recommendations, 1):
        votes = f"{r.votes} of {len(found.chains)} chains" if r.votes else "no chain: fills up"
        console.print(shown(f"{number}. {r.query}", "bold"), shown(f"({votes})", "dim"))
        console.print(shown(f"   {r.reason}"), soft_wrap=True)
        if r.query in lines:
            console.print(shown(f"   memory says: {lines[r.query]}", "dim"), soft_wrap=True)
    best = found.recommendations[0].query if found.recommendations else ""
    chain = next((c for c in found.chains if c.query == best), None)
    if chain is not None:
        console.print(shown(f"\na chain that led to {best}, as the policy wrote it", "bold"))
        text = session.policy.codec.decode(chain.tokens[chain.prompt_length :])
        for line in chain_lines(text, memory=False):
            console.print(line)


def _compare(session: Session, name: str) -> None:
    if not name:
        out().print(shown(f"with which policy? {', '.join(session.policies)}, sample"))
        return
    with waiting("recommending"):
        found = session.compare(name)
    _side_by_side(found)


def _side_by_side(found: dict[str, UserRecommendations]) -> None:
    table = plain_table("#", *found, numbers=("#",))
    for column in table.columns[1:]:
        column.max_width = 36
    lists = [one.recommendations for one in found.values()]
    first = {r.query for r in lists[0]}
    for place in range(max(map(len, lists), default=0)):
        cells = []
        for at, (ranked, one) in enumerate(zip(lists, found.values(), strict=True)):
            if place >= len(ranked):
                cells.append(shown(""))
                continue
            r = ranked[place]
            new = "" if at == 0 or r.query in first else " (new)"
            cells.append(shown(f"{short(r.query, 24)} {r.votes}/{len(one.chains)}{new}"))
        table.add_row(str(place + 1), *cells)
    out().print(table)


def _train(session: Session, rest: str) -> None:
    if rest and not (rest.isdecimal() and 1 <= int(rest) <= 10_000):
        out().print("how many steps? train 10")
        return
    steps = int(rest or STEPS)
    began = session.policy_name
    with TrainingProgress(steps, "GRPO") as progress:
        found = session.train(steps, progress, note)
    report = found["report"]
    console = out()
    console.print(
        shown(
            f"{report['steps']} steps in {report['seconds']:.0f} s; reward "
            f"{report['reward_first']:.3f} -> {report['reward_last']:.3f}; "
            f"{session.policy_name} recommends from now on"
        ),
        soft_wrap=True,
    )
    _side_by_side(
        {f"before: {began}": found["before"], f"after: {session.policy_name}": found["after"]}
    )


# ---------------------------------------------------------------- the line


@contextlib.contextmanager
def _editing(session: Session) -> Iterator[None]:
    """History on the arrow keys and completion on Tab, where the system has readline."""
    try:
        import readline
    except ImportError:  # some Pythons are built without it; lines are read all the same
        yield
        return
    before, delimiters = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(_completer(session, readline.get_line_buffer))
    readline.set_completer_delims(" ")
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    try:
        yield
    finally:
        readline.set_completer(before)
        readline.set_completer_delims(delimiters)


def _completer(session: Session, line: Callable[[], str]) -> Callable[[str, int], str | None]:
    def complete(text: str, state: int) -> str | None:
        found = completions(session, line(), text)
        return found[state] if state < len(found) else None

    return complete


def completions(session: Session, line: str, text: str) -> list[str]:
    """What Tab offers for the word ``text`` at the end of a line."""
    name, blank, _ = line.lstrip().partition(" ")
    if not blank:
        return [f"{c} " for c in COMMANDS if c.startswith(text)]
    offered: Sequence[str] = ()
    if name == "user":
        offered = session.users
    elif name == "compare":
        offered = [*session.policies, "sample"]
    elif name == "as-of":
        offered = ("now",)
    elif name in ("click", "buy"):
        offered = [str(n) for n in range(1, len(session.shown) + 1)]
    return [one for one in offered if one.startswith(text)]
