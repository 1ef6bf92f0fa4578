"""What memory computes for many moments at once, written plainly for a single one."""

import math
from collections import Counter, defaultdict

from qagent_mlx.memory.candidate_finder import MAX_CANDIDATES, MAX_ECHOED
from qagent_mlx.memory.event_log import BOUGHT, CLICK, PURCHASE, SEARCH
from qagent_mlx.memory.interest_weights import strongest_interests, touches
from qagent_mlx.memory.neighbours import MAX_NEIGHBOURS
from qagent_mlx.memory.statistics_cache import NO_FACTS

LEAST_DAYS = 0.02


def plain_state(history, config):
    """The parts of a user's state that a history says, by name, but for ``interests``' weights."""
    if not history.events:
        return {}
    queries = {}
    for search in reversed(history.searches):
        key = search.event.query_key
        if key not in queries:
            age = history.age(search.event)
            queries[key] = [key, search.event.query, 0, 0, search.outcome, age]
        queries[key][2] += 1
        queries[key][3] = max(queries[key][3], search.outcome)
    kinds, modifiers = Counter(), Counter()
    for key, _, searches, best, *_ in queries.values():
        wording = history.wordings[key]
        kinds[wording.kind] += searches
        if wording.modifier is not None:
            modifiers[wording.modifier] += searches * (1 + best)
    weights = defaultdict(float)
    for _, node, weight in touches(history, config):
        weights[node] += weight
    engaged, bought, recent = {}, {}, {}
    for event in history.events:
        if event.type == PURCHASE and history.leaf(event.product_id):
            bought[history.leaf(event.product_id)] = history.age(event)
        if event.type != SEARCH and event.product_id in history.products:
            recent[event.product_id] = history.age(event)
            if event.type >= CLICK:
                engaged[event.product_id] = history.age(event)
    return {
        "queries": list(queries.values()),
        "sources": plain_sources(history),
        "bought": bought,
        "engaged_products": engaged,
        "recent_products": recent,
        "wording": {kind: n / kinds.total() for kind, n in kinds.items()},
        "typed": {word: n / modifiers.total() for word, n in modifiers.items()},
        "interests": {(i.kind, i.name): i.share for i in strongest_interests(weights)},
        "activity": (
            len(history.events),
            len({event.session_id for event in history.events}),
            sum(event.type == PURCHASE for event in history.events),
        ),
    }


def plain_sources(history):
    """Key -> weight and age of the sources of neighbours."""
    sources = {}

    def add(key, weight, search):
        age = history.age(search.event)
        old_weight, old_age = sources.get(key, (0.0, math.inf))
        sources[key] = (max(old_weight, weight), min(old_age, age))

    for number, search in enumerate(history.successes[::-1][:8], 1):
        weight = 0.8**number
        if leaf := history.leaf(search.product_id):
            add(f"c:{leaf}", weight * (1.0 if search.outcome == BOUGHT else 0.4), search)
        if search.event.query_key is not None:
            add(f"q:{search.event.query_key}", 0.5 * weight, search)
        add(f"p:{search.product_id}", 0.2 * weight, search)
    failures = [search for search in history.searches[::-1] if not search.outcome]
    for number, search in enumerate(failures[:8], 1):
        add(f"r:{search.event.query_key}", 0.6 * 0.8**number, search)
    return sources


def plain_neighbours(state, day, vocabulary):
    """Query key -> score, strongest source and timing."""
    scores, fitted, parts = defaultdict(float), {}, defaultdict(list)
    for source in state.sources:
        if source.key not in day.followers:
            continue
        columns = (column.tolist() for column in day.followers[source.key])
        for number, probability, delay in zip(*columns, strict=True):
            key = vocabulary.keys[number]
            scores[key] += 0.3 * probability * source.weight
            part = (round(probability * source.weight, 12), source.key, source.age, delay)
            parts[key].append(part)
    for key, score in scores.items():
        wording = vocabulary.wordings[vocabulary.ids[key]]
        fit = state.wording.get(wording.kind, 0.0) + 0.15
        if wording.kind == "plain":
            fit *= 0.4
        else:
            word = wording.modifier
            fit *= 0.07 + state.taste.get(word, 0.0) + state.typed.get(word, 0.0)
        fitted[key] = score * fit
    scale = sum(scores.values()) / sum(fitted.values()) if fitted else 0.0
    order = sorted(fitted, key=lambda key: (-round(fitted[key], 12), key))[:MAX_NEIGHBOURS]
    near = {}
    for key in order:
        _, source, age, _ = max(parts[key])
        delays = [part for part in sorted(parts[key]) if not math.isnan(part[3])]
        timing = math.log(max(age, LEAST_DAYS) / delays[-1][3]) if delays else math.nan
        near[key] = (fitted[key] * scale, source, timing)
    return near


def plain_needs(state, day):
    """Category -> strength, pace and whether it follows a purchase."""
    needed = {}
    for category, age in state.engaged.items():
        if category not in day.returns:
            continue
        leaves, *columns = day.returns[category]
        for leaf, p, pace, spread in zip(leaves, *(c.tolist() for c in columns), strict=True):
            off = (math.log(max(age, LEAST_DAYS)) - pace) / spread
            strength = p * math.exp(-0.5 * off**2) / spread
            if leaf not in needed or round(strength, 12) > round(needed[leaf][0], 12):
                needed[leaf] = (strength, off, category.startswith("b:"))
    return needed


def plain_candidates(state, day, trends, vocabulary):
    """Query key -> what is known of a candidate, by column."""
    near, needed = plain_neighbours(state, day, vocabulary), plain_needs(state, day)
    own = {q.key: (rank, q) for rank, q in enumerate(state.queries, 1)}
    keys = {key for key, (rank, _) in own.items() if rank <= MAX_CANDIDATES} | near.keys()
    keys |= {key for key, trend in trends.items() if trend.rank <= MAX_CANDIDATES}
    echoed = [(q.key, terms_of(vocabulary, q.key)) for q in state.queries[:MAX_ECHOED]]
    engaged = {product.product_id: product for product in state.engaged_products}
    found = {}
    for key in sorted(keys):
        fact, terms = day.facts.get(key, NO_FACTS), terms_of(vocabulary, key)
        echoes = [jaccard(terms, other) if key != said else 0.0 for said, other in echoed]
        row = {"echo_last": echoes[0] if echoes else 0.0, "echo_most": max(echoes, default=0.0)}
        row["success"] = (fact.engagements + 1) / (fact.searches + 2)
        row["leaf"] = fact.leaf
        if key in own:
            rank, q = own[key]
            row |= {"recency_rank": rank, "searches": q.searches, "age": q.age, "query": q.text}
            row["last_outcome"] = q.last_outcome
        if key in near:
            row |= dict(zip(("neighbour_score", "source", "timing"), near[key], strict=True))
        if key in trends:
            row |= {"trend_share": trends[key].share, "short_share": trends[key].short_share}
        if product := engaged.get(fact.top_product or ""):
            row |= {"product_bought": product.bought, "product_age": product.age}
        if fact.leaf is not None:
            row["bought_age"] = state.bought.get(fact.leaf, math.nan)
            same = [q for q in state.queries if day.facts.get(q.key, NO_FACTS).leaf == fact.leaf]
            if same:
                row |= {"leaf_outcome": same[0].last_outcome, "leaf_age": same[0].age}
                row["leaf_searches"] = sum(q.searches for q in same)
            if fact.leaf in needed:
                columns = ("need", "need_pace", "need_bought")
                row |= dict(zip(columns, needed[fact.leaf], strict=True))
        found[key] = row
    return found


def terms_of(vocabulary, key):
    return vocabulary.terms[vocabulary.ids[key]]


def jaccard(a, b):
    return len(a & b) / len(a | b) if a & b else 0.0
