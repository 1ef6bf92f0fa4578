"""Exports of a made-up German shop, as awkward as real ones, to try one's first ingest on.

    python docs/examples/make_exports.py exporte      # 3,000 customers, the same ones every time

Semicolons, decimal commas, Windows-1252 in one file and UTF-8 with a mark in the other, times with
a zone in German order, ids with blanks, stock in words. What customers want follows from what they
have: a coffee machine is followed by beans.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

ZONE = timezone(timedelta(hours=2))
START = datetime(2026, 4, 1, tzinfo=ZONE)
BRANDS = ("Grünwald", "Höfer & Söhne", "Nordlicht", "Ökofix", "Brandt")
KINDS = {
    "Küche > Kaffee": "Espressomaschine Kaffeemühle Milchaufschäumer Kaffeebohnen Entkalker",
    "Garten > Werkzeug": "Rasenmäher Heckenschere Gartenschlauch Pflanzkübel",
    "Büro": "Druckerpapier Tintenpatrone Schreibtischlampe Bürostuhl",
    "Sport > Outdoor": "Zelt Schlafsack Campingkocher Stirnlampe Gaskartusche",
    "Baby": "Windeln Babyfläschchen Feuchttücher Kinderwagen",
}
FOLLOWED_BY = {
    "Espressomaschine": ("Kaffeebohnen", "Entkalker", "Kaffeemühle"),
    "Zelt": ("Schlafsack", "Campingkocher"),
    "Campingkocher": ("Gaskartusche",),
    "Windeln": ("Feuchttücher", "Windeln"),
    "Druckerpapier": ("Tintenpatrone", "Druckerpapier"),
    "Kaffeebohnen": ("Kaffeebohnen", "Entkalker"),
    "Rasenmäher": ("Heckenschere",),
    "Kinderwagen": ("Windeln",),
}
ALL_KINDS = [kind for text in KINDS.values() for kind in text.split()]
Row = tuple[datetime, str, str, str, str]  # moment, customer, event, query, product


@dataclass(frozen=True)
class Product:
    """A product of the catalog."""

    id: str
    kind: str
    brand: str
    category: str
    title: str
    price: float
    in_stock: bool


def make_catalog(chance: random.Random) -> list[Product]:
    """Three products of each brand for each kind."""
    catalog: list[Product] = []
    for category, kinds in KINDS.items():
        for kind in kinds.split():
            for brand in BRANDS:
                for model in ("Classic", "Pro", "Mini"):
                    price = round(chance.uniform(3, 400), 2)
                    name, title = f"ART {len(catalog) + 1:05d}", f"{brand} {kind} {model}"
                    in_stock = chance.random() < 0.85
                    catalog.append(Product(name, kind, brand, category, title, price, in_stock))
    return catalog


def make_visits(
    customer: int, shelves: dict[tuple[str, str], list[Product]], chance: random.Random
) -> Iterator[Row]:
    """What a customer of a favourite brand searches, clicks and buys in some weeks."""
    name = f"Kd {customer:04d} {chance.choice('ABC')}"
    favourite, kind = chance.choice(BRANDS), chance.choice(ALL_KINDS)
    moment = START + timedelta(minutes=chance.randrange(60 * 24 * 60))
    for _ in range(chance.choice((1, 1, 2, 2, 3, 4, 6))):
        brand = favourite if chance.random() < 0.8 else chance.choice(BRANDS)
        query = f"{brand} {kind}".lower() if chance.random() < 0.7 else kind.lower()
        yield moment, name, "Suche", query, ""
        found = [product for product in shelves[kind, brand] if product.in_stock]
        clicked = chance.sample(found, min(len(found), chance.choice((0, 1, 1, 2))))
        for number, product in enumerate(clicked):
            yield moment + timedelta(seconds=20 + 30 * number), name, "Klick", query, product.id
            if number == 0 and chance.random() < 0.3:
                yield moment + timedelta(seconds=90), name, "Kauf", query, product.id
        follows = FOLLOWED_BY.get(kind, ALL_KINDS)
        kind = chance.choice(follows if chance.random() < 0.75 else ALL_KINDS)
        moment += timedelta(minutes=chance.randrange(60 * 6, 60 * 24 * 9))


def german(price: float) -> str:
    """1.234,50."""
    return f"{price:,.2f}".translate(str.maketrans(",.", ".,"))


def write_exports(folder: Path, customers: int) -> None:
    """``artikel.csv`` and ``protokoll.csv`` in a folder."""
    chance = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    catalog = make_catalog(chance)
    with (folder / "artikel.csv").open("w", encoding="cp1252", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(
            ("Artikel-Nr.", "Bezeichnung", "Marke", "Warengruppe", "Preis (EUR)", "Lagerbestand")
        )
        for p in catalog:
            stock = "lieferbar" if p.in_stock else "ausverkauft"
            writer.writerow((p.id, p.title, p.brand, p.category, german(p.price), stock))
    shelves: dict[tuple[str, str], list[Product]] = {}
    for product in catalog:
        shelves.setdefault((product.kind, product.brand), []).append(product)
    rows = [row for n in range(customers) for row in make_visits(n, shelves, chance)]
    with (folder / "protokoll.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(("Zeitpunkt", "Kundennummer", "Ereignis", "Suchbegriff", "Artikel-Nr."))
        for moment, *rest in sorted(rows):
            writer.writerow((moment.strftime("%d.%m.%Y %H:%M:%S +02:00"), *rest))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--customers", type=int, default=3000)
    given = parser.parse_args()
    write_exports(given.folder, given.customers)
