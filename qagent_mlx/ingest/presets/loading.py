"""Load a preset's files into a shop."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import duckdb

from ...errors import QAgentError
from ...shop.shop import Shop
from ...utils.database import copy_parquet, literal, open_duckdb
from ...utils.process_folder import process_folder
from ..derived_queries import derive_queries
from ..ingest import ingest_files
from ..options import Kind, ReadOptions
from ..report import IngestReport
from ..sources.locations import Location
from .corrections import correct_events
from .finding import find_files
from .folder import Folder
from .looking import in_utf8, look_at
from .preset import Extract, Preset, PresetReport
from .raw_files import BrokenLines, RawFile, RawFiles, check_whole
from .registry import PRESETS, find_preset, recognise, recognise_all

AUTO = "auto"
_MENTIONED = "catalog_from_events"  # meta: the catalog's version that was made from events


def load_preset(
    shop: Shop, name: str, *sources: str | Path, values: Mapping[str, str] | None = None
) -> PresetReport:
    """Read a preset's raw files (folders, files, globs) into a shop that is open for writing.

    ``values`` gives names of events another type, such as ``{"Product Reviewed": "view"}``.

    The name ``auto`` stands for the preset that is recognised. What the shop holds already is
    skipped, so the next day's export may be added; data sets that do not mix with other data
    want a new shop.

    Raises:
        QAgentError: the preset, a file or what a file needs is missing, nothing is recognised,
            or the shop has other data. Nothing of it is stored.
    """
    preset = find_preset(name) if name != AUTO else None
    if preset is not None and preset.fill is not None:
        return _fill(shop, preset, sources)
    with tempfile.TemporaryDirectory(dir=process_folder()) as temporary:
        with open_duckdb() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            files = [
                look_at(connection, path, readable, Path(temporary))
                for path, readable in find_files(sources, Path(temporary))
            ]
            preset, recognised = _choose(preset, files, sources)
            recognised = [
                (role, in_utf8(file, Path(temporary)) if file.form == "csv" else file)
                for role, file in recognised
            ]
            _check_new(shop, preset)
            raw = RawFiles(connection, recognised, Path(sources[0]), values)
            _load_known(shop, raw, Path(temporary))
            label = _label(preset, recognised)
            try:
                extract, parts = _read(shop, raw, preset, files, Path(temporary))
            except BrokenLines:
                raw.skip_broken_lines()
                extract, parts = _read(shop, raw, preset, files, Path(temporary))
        return _store(shop, preset, extract, parts, label)


def preview_preset(
    shop_path: Path, name: str, *sources: str | Path, values: Mapping[str, str] | None = None
) -> PresetReport:
    """What `load_preset` would do, tried on a copy of the shop's database.

    Raises:
        QAgentError: as `load_preset` does.
    """
    with tempfile.TemporaryDirectory(dir=process_folder()) as folder:
        with Shop.open(shop_path) as shop:
            shop.counts()  # nobody writes to it
            for part in ("shop.json", "shop.duckdb", "shop.duckdb.wal"):
                if (shop_path / part).exists():
                    shutil.copy2(shop_path / part, folder)
        with Shop.open_copy(folder) as copy:
            return load_preset(copy, name, *sources, values=values)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The command that reads a file of a known format, which is that of the preset."""

    command: str
    preset: Preset


def suggest_command(path: str | Path) -> Suggestion | None:
    """How to read a file of a known format; None where it has none."""
    if not Path(path).is_file():
        return None
    with tempfile.TemporaryDirectory(dir=process_folder()) as folder, open_duckdb() as connection:
        try:
            found = recognise(look_at(connection, Path(path), Path(path), Path(folder)))
        except QAgentError:
            return None
    if found is None:
        return None
    preset, _ = found
    command = f"qagent ingest --preset {preset.name} --from {shlex.quote(str(path))}"
    return Suggestion(command, preset)


def _fill(shop: Shop, preset: Preset, sources: Sequence[str | Path]) -> PresetReport:
    path = Path(sources[0])
    if len(sources) > 1 or not path.is_dir():
        path = path if not path.is_dir() else Path(sources[1])
        raise QAgentError(
            f"{path} is no folder; name the one that holds the raw files of {preset.name}"
        )
    _check_new(shop, preset)
    assert preset.fill is not None
    with open_duckdb() as connection:
        products, events = preset.fill(shop, Folder(path, connection))
    return PresetReport(preset.name, shop.config.derived_queries, products, events)


def _check_new(shop: Shop, preset: Preset) -> None:
    counts = shop.counts() if preset.needs_new_shop else {}
    if counts.get("products") or counts.get("events"):
        raise QAgentError(f"{shop.path} holds data already; a preset fills a new shop: qagent init")


def _choose(
    preset: Preset | None, files: list[RawFile], sources: Sequence[str | Path]
) -> tuple[Preset, list[tuple[str, RawFile]]]:
    """The preset, and those of the files that it reads, with their roles."""
    where = ", ".join(map(str, sources))
    by_preset = recognise_all(files)
    if preset is not None and (preset.name != "elasticdump" or not by_preset):
        roles = [(preset.recognise(file), file) for file in files]
        recognised = [(role, file) for role, file in roles if role is not None]
        if recognised:
            return preset, recognised
        hint = f"; it looks like the preset {next(iter(by_preset))}" if by_preset else ""
        raise QAgentError(f"{where} holds nothing of {preset.title}, which is {preset.files}{hint}")
    if not by_preset:
        known = ", ".join(p.name for p in PRESETS.values() if p.read is not None)
        named = ", ".join(p.name for p in PRESETS.values() if p.read is None)
        raise QAgentError(
            f"{where}: no known format; looked for {known}. The sets {named} have to be named by "
            "a preset. For other files: qagent ingest products FILE, qagent ingest events FILE"
        )
    if len(by_preset) > 1:
        raise QAgentError(
            f"{where} holds several formats; read one after the other: "
            + ", then ".join(f"qagent ingest --preset {name} --from {where}" for name in by_preset)
        )
    ((name, recognised_files),) = by_preset.items()
    return PRESETS[name], recognised_files


def _read(
    shop: Shop, raw: RawFiles, preset: Preset, files: list[RawFile], folder: Path
) -> tuple[Extract, dict[str, Path]]:
    """What the preset reads, and the files that it was written to."""
    extract = _extract(raw, preset, files)
    for _, file in raw.files:
        check_whole(file)  # before 2.0, DuckDB reads one that was cut short as if it ended there
    return extract, _write(shop, raw, extract, folder)


def _extract(raw: RawFiles, preset: Preset, files: list[RawFile]) -> Extract:
    """What the preset reads, with what is left out."""
    assert preset.read is not None
    extract = preset.read(raw)
    ignored, notes = dict(extract.ignored), [*extract.notes, *raw.notes]
    if raw.malformed:
        ignored["malformed row"] = raw.malformed
    read = {file.path for _, file in raw.files}
    unread = [file for file in files if file.path not in read]
    if unread:
        names = ", ".join(file.path.name for file in unread[:5])
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        note = f"not read, no files of {preset.name}: {names}{more}"
        others = recognise_all(unread)
        if others:
            note += f"; some are of {' and '.join(others)}, read them by that preset"
        elif any(len(file.columns) > 1 for file in unread):  # perhaps a catalog
            note += "; files with columns of their own: qagent ingest products FILE, or events FILE"
        notes.append(note)
    return replace(extract, ignored=ignored, notes=tuple(notes))


def _load_known(shop: Shop, raw: RawFiles, folder: Path) -> None:
    """The tables ``known``, of the shop's products, and ``known_aliases``, of their other ids.

    Other ids are known, too, without a title.
    """
    for table, query in (
        (
            "known",
            """SELECT product_id, title, brand, category, price FROM products
            UNION ALL SELECT alias, NULL, NULL, NULL, NULL FROM product_aliases""",
        ),
        ("known_aliases", "SELECT alias, product_id FROM product_aliases"),
    ):
        path = folder / f"{table}.parquet"
        copy_parquet(shop.connection, query, path)
        raw.connection.execute(f"CREATE TABLE {table} AS FROM read_parquet({literal(path)})")


def _label(preset: Preset, files: Sequence[tuple[str, RawFile]]) -> str:
    """What reports of single rows call the source."""
    (_, first), *others = files
    return f"{preset.name} {first.path.name}" + (f" and {len(others)} more" if others else "")


def _write(shop: Shop, raw: RawFiles, extract: Extract, folder: Path) -> dict[str, Path]:
    """Write the extract's queries as Parquet files, by kind; ingest reads those."""
    queries = {
        "products": extract.products,
        "events": extract.events,
        "impressions": extract.impressions,
        "recommendations": extract.recommendations,
        "logins": extract.logins,
        "returned": extract.returned,
    }
    if extract.products is None and extract.mentioned is not None and _wants_mentioned(shop):
        # What this day's events do not tell stays as earlier ones told it.
        queries["products"] = f"""SELECT m.product_id, coalesce(m.title, k.title,
                'item ' || m.product_id) AS title, coalesce(m.brand, k.brand) AS brand,
            coalesce(m.category, k.category) AS category,
            coalesce(m.price::VARCHAR, k.price::VARCHAR) AS price
        FROM ({extract.mentioned}) m LEFT JOIN known k USING (product_id)"""
    paths = {}
    for kind, query in queries.items():
        if query is None:
            continue
        path = folder / f"{kind}.parquet"
        try:
            count = copy_parquet(raw.connection, query, path)
        except duckdb.Error as error:
            raise raw.problem(error) from error
        if count:
            paths[kind] = path
    return paths


def _wants_mentioned(shop: Shop) -> bool:
    """Whether the shop has no catalog but what earlier events told of products."""
    return not shop.counts()["products"] or shop.meta(_MENTIONED) == str(shop.catalog_version)


def _store(
    shop: Shop, preset: Preset, extract: Extract, parts: dict[str, Path], label: str
) -> PresetReport:
    reports = {}
    notes = list(extract.notes)
    if shop.counts()["events"]:
        notes += correct_events(shop, parts.get("logins"), parts.get("returned"))
    # Published sets number their users, some of them from 0 on.
    options = ReadOptions(max_rejects=1, preset=preset.name, has_user_zero=preset.needs_new_shop)
    for kind in get_args(Kind):
        reports[kind] = IngestReport()
        if kind in parts:
            location = Location(str(parts[kind]), short=label)
            try:
                reports[kind] = ingest_files(shop, kind, [location], options)
            except QAgentError as error:
                stored = [
                    f"{report.accepted:,} {k}" for k, report in reports.items() if report.accepted
                ]
                if not stored:
                    raise
                raise QAgentError(f"{error}; {', '.join(stored)} are stored") from error
    if extract.products is None and "products" in parts:
        with shop.transaction():
            shop.set_meta(_MENTIONED, str(shop.catalog_version))
        notes.append(_mentioned_note(shop, reports["products"].accepted))
    is_derivable = extract.has_text and not (extract.derive or extract.awaits_queries)
    if is_derivable and reports["events"].accepted and not _has_searches(shop):
        notes.append("the log has no searches; make queries of it with: qagent ingest derive")
    derived = shop.config.derived_queries
    if extract.derive is not None:
        reports["events"] += derive_queries(shop, extract.derive)
        derived = shop.config.derived_queries
    whole = IngestReport(ignored=dict(extract.ignored), notes=tuple(notes))
    return PresetReport(preset.name, derived, **reports, whole=whole)


def _has_searches(shop: Shop) -> bool:
    query = "SELECT 1 FROM events WHERE type = 'search' LIMIT 1"
    return shop.connection.execute(query).fetchone() is not None


def _mentioned_note(shop: Shop, accepted: int) -> str:
    ((untitled,),) = shop.connection.execute(
        "SELECT count(*) FROM products WHERE title = 'item ' || product_id"
    ).fetchall()
    called = f"; {untitled:,} have no title there and are called by their id" if untitled else ""
    return (
        f"the shop had no catalog: {accepted:,} products are made of what the events tell"
        f"{called}; load yours with: qagent ingest products FILE"
    )
