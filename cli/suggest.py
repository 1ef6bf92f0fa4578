"""``qagent suggest``."""

from __future__ import annotations

from pathlib import Path

import click

from .console import print_table, say, waiting
from .options import Output, json_option, opened, shop_option
from .param_types import ID, PLAIN


@click.command()
@click.argument("user", type=ID)
@click.argument("prefix", type=PLAIN)
@click.option(
    "-k",
    "number",
    type=click.IntRange(1, 100),
    default=8,
    show_default=True,
    help="Number of completions, at most.",
)
@shop_option
@json_option
def suggest(user: str, prefix: str, number: int, shop_path: Path) -> Output:
    """Complete PREFIX as USER types it: own queries first, then what many search.

    Only what finds products, with a typo too. Servers answer POST /suggest so.
    """
    from qagent_mlx.agent.suggest import Completer
    from qagent_mlx.inventory.product_search import open_shop_search
    from qagent_mlx.live.limits import LimitsBook
    from qagent_mlx.memory.profile import Memory, count_words
    from qagent_mlx.memory.ranker import MemoryRanker
    from qagent_mlx.memory.types import Moment

    with opened(shop_path) as shop, waiting("completing"):
        now = shop.end_of_log()
        memory = Memory(
            shop.connection, shop.config.memory, count_words, MemoryRanker.of_shop(shop)
        )
        (profile,) = memory.profiles([Moment(user, now)])
        (limits,) = LimitsBook(shop).limits([user])
        completer = Completer.of_shop(memory, open_shop_search(shop), now)
        found = completer.complete(prefix, profile, number, limits)
    document = {
        "user": user,
        "prefix": prefix,
        "suggestions": [{"query": s.query, "source": s.source} for s in found],
    }

    def draw() -> None:
        if not found:
            say(f"nothing that begins with {prefix!r} finds a product")
            return
        rows = [(n, s.query, s.source) for n, s in enumerate(found, 1)]
        print_table(("#", "query", "from"), rows, numbers=("#",))

    return Output(document, draw)
