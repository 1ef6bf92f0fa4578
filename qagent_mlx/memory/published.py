"""Memory that machines of one lake publish for each other: users in buckets, a bucket at a time.

    memory/of-16/7.json                which folder holds bucket 7, and what it stands for
    memory/of-16/7-00000001/*.parquet  its rows of `PUBLISHED`

Below the lake's data. A bucket's new files are there before its manifest names them, and a file
that is not as the manifest says counts as not there: then the bucket is built anew.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import duckdb
import msgspec

from ..errors import QAgentError
from ..shop.lake import PUBLISHED as FOLDER
from ..shop.lake_data import LakeData
from ..shop.lake_files import scratch
from ..utils.atomic_files import hash_file
from ..utils.database import copy_parquet, literal
from .shop_tables import TRANSITIONS

log = logging.getLogger("qagent.memory")

USERS_A_BUCKET = 5000  # about as many
LEAST_BUCKETS, MOST_BUCKETS = 4, 1024
LARGEST_MANIFEST = 1 << 20  # bytes
_FOLDER = re.compile(r"\d+-[0-9a-f]{8}")
TABLES = (*TRANSITIONS, "profiles")  # with rows of users
PUBLISHED = (*TABLES, "wordings")  # and how queries of theirs were first typed


class Manifest(msgspec.Struct, frozen=True):
    """What a bucket's published rows stand for.

    Attributes:
        snapshot: Of the lake.
        memory: The format and the settings, see `store.fingerprint`.
        catalog: Identifies titles, categories and price bands.
        folder: Where they are.
        files: The SHA-256 of each file.
    """

    snapshot: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
    memory: str
    catalog: str
    folder: str
    files: dict[str, str]


class PublishedMemory:
    """The published buckets of a lake.

    Args:
        data: The files that machines publish of memory.
        users: How many the shop has, about: so many buckets there are.
    """

    def __init__(self, data: LakeData, users: int) -> None:
        self.buckets = LEAST_BUCKETS
        while self.buckets < min(users / USERS_A_BUCKET, MOST_BUCKETS):
            self.buckets *= 2
        self._data, self._place = data, f"of-{self.buckets}"

    def bucket_sql(self, user: str) -> str:
        """SQL: the bucket of a user, the same on every machine and with every DuckDB."""
        return f"(('0x' || left(md5({user}), 8))::UBIGINT % {self.buckets})::INTEGER"

    def find(self, bucket: int) -> Manifest | None:
        """What is published of a bucket, if it can be read."""
        name = f"{self._place}/{bucket}.json"
        try:
            sizes = self._data.sizes(self._place)
            manifest = self._data.read_record(name, Manifest, LARGEST_MANIFEST, sizes)
            if manifest is not None and not _FOLDER.fullmatch(manifest.folder):
                raise QAgentError("it names files elsewhere")
        except QAgentError as error:
            self._refuse(bucket, error)
            return None
        return manifest

    def take(self, bucket: int, manifest: Manifest, folder: Path) -> bool:
        """Get a bucket's files into a folder; False, and said, where they are not whole."""
        try:
            for name in PUBLISHED:
                file = file_of(folder, name)
                self._data.take(f"{self._place}/{manifest.folder}/{name}.parquet", file)
                if hash_file(file) != manifest.files.get(name):
                    raise ValueError(f"{manifest.folder}/{name}.parquet is damaged")
        except (OSError, ValueError, QAgentError) as error:
            self._refuse(bucket, error)
            return False
        return True

    def _refuse(self, bucket: int, error: Exception) -> None:
        name = f"{FOLDER}/{self._place}/{bucket}.json"
        log.warning("%s: %s; the bucket is built anew", name, error)

    def folders(self) -> set[str]:
        """The folders that hold published buckets, as manifests name them."""
        names = (name.split("/") for name in self._data.sizes(self._place))
        return {parts[1] for parts in names if len(parts) == 3}

    def publish(
        self,
        connection: duckdb.DuckDBPyConnection,
        bucket: int,
        rows: Mapping[str, str],
        manifest: Manifest,
    ) -> None:
        """Publish a bucket, which nobody else does meanwhile, in place of what was.

        Args:
            rows: SQL of the rows of each of `PUBLISHED`.
            manifest: Without folder and hashes.

        Raises:
            QAgentError: the lake's data cannot be written.
        """
        before = self.find(bucket)
        # By turns: where nothing can be deleted, a new name each time would leave ever more.
        turn = int(before is not None and before.folder == f"{bucket}-{0:08x}")
        target = f"{bucket}-{turn:08x}"
        files = {}
        with scratch() as folder:
            for name, query in rows.items():
                file = file_of(folder, name)
                copy_parquet(connection, query, file)
                files[name] = hash_file(file)
                self._data.put(f"{self._place}/{target}/{name}.parquet", file)
        whole = msgspec.structs.replace(manifest, folder=target, files=files)
        self._data.write(f"{self._place}/{bucket}.json", msgspec.json.encode(whole))
        self._clear(bucket, but=target)

    def withdraw(self, bucket: int) -> None:
        """Take back what was published of a bucket."""
        self._data.remove(f"{self._place}/{bucket}.json")
        self._clear(bucket)

    def _clear(self, bucket: int, but: str = "") -> None:
        for name in self._data.sizes(self._place):
            folder = name.split("/")[1]
            if folder.startswith(f"{bucket}-") and folder != but:
                self._data.remove(name)

    def drop_smaller(self) -> None:
        """Delete what was published in fewer buckets, when there were fewer users."""
        for name in self._data.sizes():
            number = name.partition("/")[0].removeprefix("of-")
            if number.isdecimal() and int(number) < self.buckets:
                self._data.remove(name)


def file_of(folder: Path, name: str) -> Path:
    """The file with a bucket's rows of one of `PUBLISHED`."""
    return folder / f"{name}.parquet"


def relation(folder: Path, name: str) -> str:
    """SQL: a bucket's rows of one of `PUBLISHED`."""
    return f"read_parquet({literal(file_of(folder, name))}, hive_partitioning = false)"
