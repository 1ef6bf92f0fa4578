"""The search index of a lake's shop: one machine builds it, and all others take it.

    inventory/manifest.json    the generation in force: what it was built from, and its files
    inventory/3fa9…            a file of it, named by the SHA-256 of its content

Below the lake's data. A machine that builds or updates the index keeps all others from doing so
meanwhile, publishes what files are new, then the manifest, and removes what no generation needs any
more. A machine whose index follows from another generation takes the files of that one: where the
data lie on its disk they are the same files, memory-mapped by all; else it copies them, once. So
nobody reads a published file for long, and none is missed when it goes.

A file whose content is not as its name says, and a manifest that nobody can read, count as not
there: then the index is built anew.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ..errors import QAgentError
from ..shop.lake_catalog import INDEX, LakeCatalog, LakeInUse
from ..shop.lake_data import LakeData, open_lake_data
from ..shop.shop import Shop
from ..utils.atomic_files import hash_file, write_json
from .encoders.registry import EncoderSpec
from .index_files import (
    FORMAT,
    MANIFEST,
    WRITER_WAIT,
    FileStamp,
    IndexWriter,
    Manifest,
    checked,
    read_manifest,
    writing,
)

log = logging.getLogger("qagent.inventory")

FOLDER = "inventory"
_META = "published_index"
LARGEST_MANIFEST = 1 << 24  # bytes
_FILE = re.compile(r"([a-z][a-z0-9_]*)-\d+\.([a-z]+)")  # of an index: stem, generation, suffix

Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Generation(msgspec.Struct, frozen=True):
    """A published index.

    Attributes:
        name: Its own, by chance.
        snapshot: Of the lake, whose rows it was built from.
        index: As the machine that built it has it.
        files: The SHA-256 of each file of the index.
    """

    name: str
    snapshot: Annotated[int, Meta(ge=-1, lt=1 << 62)]
    index: Manifest
    files: dict[str, Hash]


class PublishedIndex:
    """What is published of the index of a shop that is in a lake."""

    def __init__(self, shop: Shop) -> None:
        assert shop.config.store is not None
        self._folder = shop.path / "inventory"
        self._encoder = EncoderSpec.of(shop.config.search)
        self.catalog = LakeCatalog(shop.config.store, f"the shop {shop.path}", shop.config.data)
        self._data: LakeData = open_lake_data(self.catalog, FOLDER)
        self._said = ""

    def find(self) -> Generation | None:
        """The generation in force, if it is of the shop's encoder and can be read."""
        try:
            sizes = self._data.sizes()
            found = self._data.read_record(MANIFEST, Generation, LARGEST_MANIFEST, sizes)
            if found is None:
                return None
            stamps = found.index.files
            if found.files.keys() != stamps.keys() or not all(map(_FILE.fullmatch, stamps)):
                raise QAgentError("it names other files than those of an index")
            if any(sizes.get(found.files[name]) != stamps[name].size for name in stamps):
                raise QAgentError("a file of it is not there, or not whole")
            found = msgspec.structs.replace(found, index=checked(found.index))
        except (ValueError, QAgentError) as error:
            self._refuse(error)
            return None
        if found.index.format != FORMAT or found.index.encoder != self._encoder:
            return None
        return found

    def is_ours(self, generation: Generation | None) -> bool:
        """Whether this machine's index is that generation, or follows from it."""
        try:
            return generation is None or read_manifest(self._folder).published == generation.name
        except QAgentError:
            return False

    def take(self, generation: Generation, writer: IndexWriter) -> bool:
        """Make a generation this machine's index; False where it is not whole, or gone by now."""
        own = self._own_files()
        reused: dict[str, FileStamp] = {}
        names: dict[str, str] = {}
        try:
            for name, digest in generation.files.items():
                stamp = generation.index.files[name]
                held = own.get(stamp)
                if held is not None and hash_file(self._folder / held) == digest:
                    names[name] = held
                    reused[held] = stamp
                else:
                    names[name] = self._add(writer, name, digest)
        except (QAgentError, OSError) as error:
            if self.find() == generation:  # else another one has been published meanwhile
                self._refuse(error)
            return False
        shards = tuple(shard._replace(file=names[shard.file]) for shard in generation.index.shards)
        writer.published = generation.name
        writer.commit(
            replace(generation.index, generation=writer.generation, shards=shards, taken=True),
            reused,
        )
        return True

    def _refuse(self, error: Exception) -> None:
        line = str(error).splitlines()[0]
        if line != self._said:
            log.warning(
                "what is published of the index is not used: %s; publish it anew: qagent index",
                line,
            )
        self._said = line

    def _own_files(self) -> dict[FileStamp, str]:
        """The files of this machine's index, by size and checksum."""
        try:
            files = read_manifest(self._folder).files
        except QAgentError:
            return {}
        return {stamp: name for name, stamp in files.items() if (self._folder / name).is_file()}

    def _add(self, writer: IndexWriter, name: str, digest: str) -> str:
        match = _FILE.fullmatch(name)
        assert match is not None

        def fetch(path: Path) -> None:
            self._data.take(digest, path)
            if hash_file(path) != digest:
                path.unlink()
                self._data.remove(digest)  # for whoever publishes it again
                raise QAgentError(f"{digest} is damaged")

        return writer.add(f"{match[1]}.{match[2]}", fetch)

    def publish(self, snapshot: int, name: str) -> None:
        """Publish this machine's index in place of what was, while nobody else does.

        Raises:
            QAgentError: the lake's data cannot be written.
        """
        manifest = read_manifest(self._folder)
        files = {file: hash_file(self._folder / file) for file in manifest.files}
        there = self._data.sizes()
        for file, digest in files.items():
            if there.get(digest) != manifest.files[file].size:
                self._data.put(digest, self._folder / file)
        index = replace(manifest, taken=False, published=name)
        generation = Generation(name, snapshot, index, files)
        self._data.write(MANIFEST, msgspec.json.encode(generation))
        for left in there.keys() - {MANIFEST, *files.values()}:
            self._data.remove(left)


def open_published(shop: Shop) -> PublishedIndex | None:
    """What is published for a shop; None of one that is in no lake, or whose lake is away."""
    if shop.config.store is None:
        return None
    try:
        return PublishedIndex(shop)
    except QAgentError as error:
        log.info("%s", error)  # whoever opened the shop has said so
        return None


def take_published(shop: Shop, published: PublishedIndex | None) -> None:
    """Make what another machine has published this machine's index, where it is another one."""
    if published is None or published.is_ours(published.find()):
        return
    with writing(shop.path / "inventory") as writer:
        _take_newest(published, writer)


def tell_published(shop: Shop, index: Manifest) -> None:
    """Let the servers of other machines, which look at rows, look at an index that is published."""
    if index.published:
        shop.set_meta(_META, index.published)


def _take_newest(published: PublishedIndex, writer: IndexWriter) -> Generation | None:
    """Take the generation in force, which others may replace meanwhile; returns which it was."""
    while not published.is_ours(found := published.find()):
        assert found is not None
        if published.take(found, writer) or published.find() == found:
            break
    return found


@contextmanager
def sharing(
    shop: Shop, published: PublishedIndex | None, *, takes: bool = True
) -> Iterator[IndexWriter]:
    """Hold the right to write the index, among all machines; what was written is then published.

    Args:
        takes: Whether to begin with what others have published meanwhile.

    Raises:
        QAgentError: as `index_files.writing`.
    """
    with writing(shop.path / "inventory") as writer, ExitStack() as stack:
        if published is None:
            yield writer
            return
        is_alone = True
        try:
            stack.enter_context(published.catalog.lock(WRITER_WAIT, INDEX))
        except LakeInUse as error:
            log.warning("%s; the index is not published", error)
            is_alone = False
        before = published.find()
        if takes:
            before = _take_newest(published, writer)
            writer = IndexWriter(writer.folder)
        name = secrets.token_hex(8)
        writer.published = name if is_alone else (before.name if before else "")
        yield writer
        if is_alone and _is_written(writer):
            _publish(shop, published, writer, before)


def publish_missing(shop: Shop, published: PublishedIndex | None) -> None:
    """Publish this machine's index, where none is."""
    if published is None or published.find() is not None:
        return
    with sharing(shop, published, takes=False) as writer:
        if published.find() is None:
            manifest = read_manifest(writer.folder)
            writer.commit(manifest, manifest.files)


def _is_written(writer: IndexWriter) -> bool:
    try:
        return read_manifest(writer.folder).published == writer.published
    except QAgentError:
        return False


def _publish(
    shop: Shop, published: PublishedIndex, writer: IndexWriter, before: Generation | None
) -> None:
    try:
        published.publish(
            -1 if shop.lake_snapshot is None else shop.lake_snapshot, writer.published
        )
    except (QAgentError, OSError) as error:
        log.warning("the index is not published: %s; other machines build their own", error)
        # It follows from what is there, until somebody publishes another one.
        manifest = read_manifest(writer.folder)
        manifest = replace(manifest, published=before.name if before else "")
        write_json(writer.folder / MANIFEST, msgspec.to_builtins(manifest))
