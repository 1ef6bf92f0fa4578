"""Histories of one user, written by hand."""

from qagent_mlx.memory.event_log import (
    CLICK,
    DAY,
    PURCHASE,
    SEARCH,
    Event,
    EventLog,
    History,
    ProductFacts,
)

START = 20_000 * DAY


def history(*sessions):
    """Sessions of (day, search, …): a search is (query, product or None, bought or not).

    Without a query the product was found in another way.
    """
    log = EventLog(None)
    events = []
    for number, (day, *searches) in enumerate(sessions):
        at = int(START + day * DAY)
        for query, product, *bought in searches:
            search = None
            if query:
                search = len(events)
                events.append(Event("u", search, at, SEARCH, query, query, None, number, None))
            if product:
                kind = PURCHASE if bought else CLICK
                row = (at + DAY // 48, kind, None, None, product, number, search)
                events.append(Event("u", len(events), *row))
                log.products[product] = ProductFacts(
                    product, None, "home", f"of {product}", (), None, None, None
                )
            at += DAY // 24
    return History(events, log)
