"""Memory that machines of one lake publish for each other: users in buckets, a bucket at a time.

    memory/of-16/7.json          which folder holds bucket 7, and what it stands for (`Manifest`)
    memory/of-16/7-3f2a/*.parquet  its rows of `PUBLISHED`

Below the folder of the lake's data. A bucket's new folder is there before its manifest names it,
and a file that is not as the manifest says counts as not there: then the bucket is built anew.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import duckdb
import msgspec

from ..errors import QAgentError
from ..shop.lake import PUBLISHED as FOLDER
from ..utils.atomic_files import hash_file, replacing_folder, require_plain_file, write_json
from ..utils.database import copy_parquet, literal
from .shop_tables import TRANSITIONS

log = logging.getLogger("qagent.memory")

USERS_A_BUCKET = 5000  # about as many
LEAST_BUCKETS, MOST_BUCKETS = 4, 1024
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
        data: The lake's folder.
        users: How many the shop has, about: so many buckets there are.
    """

    def __init__(self, data: Path, users: int) -> None:
        self.buckets = LEAST_BUCKETS
        while self.buckets < min(users / USERS_A_BUCKET, MOST_BUCKETS):
            self.buckets *= 2
        self.folder = data / FOLDER / f"of-{self.buckets}"

    def bucket_sql(self, user: str) -> str:
        """SQL: the bucket of a user, the same on every machine and with every DuckDB."""
        return f"(('0x' || left(md5({user}), 8))::UBIGINT % {self.buckets})::INTEGER"

    def find(self, bucket: int) -> Manifest | None:
        """What is published of a bucket, if it is whole."""
        path = self.folder / f"{bucket}.json"
        try:
            require_plain_file(path, "what is published of memory")
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
            for name in PUBLISHED:
                file = self.file(manifest, name)
                if file.exists() and not file.is_file():
                    raise ValueError(f"{file} is no file")
                if hash_file(file) != manifest.files.get(name):
                    raise ValueError(f"{file} is damaged")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, QAgentError) as error:
            log.warning("%s: %s; the bucket is built anew", path, error)
            return None
        return manifest

    def folders(self) -> set[str]:
        """The folders that hold published buckets, as manifests name them."""
        return {path.name for path in self.folder.glob("*-*") if path.is_dir()}

    def file(self, manifest: Manifest, name: str) -> Path:
        """The file with a bucket's rows of one of `PUBLISHED`."""
        return self.folder / Path(manifest.folder).name / f"{name}.parquet"

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
            manifest: Without hashes.
        """
        target = self.folder / manifest.folder
        try:
            with replacing_folder(target) as folder:
                for name, query in rows.items():
                    copy_parquet(connection, query, folder / f"{name}.parquet")
                files = {name: hash_file(folder / f"{name}.parquet") for name in rows}
            whole = msgspec.structs.replace(manifest, files=files)
            write_json(self.folder / f"{bucket}.json", msgspec.to_builtins(whole))
        except OSError as error:
            raise QAgentError(f"cannot write {target}: {error.strerror}") from error
        for older in self.folder.glob(f"{bucket}-*"):
            if older.name != manifest.folder:
                shutil.rmtree(older, ignore_errors=True)

    def withdraw(self, bucket: int) -> None:
        """Take back what was published of a bucket."""
        (self.folder / f"{bucket}.json").unlink(missing_ok=True)
        for folder in self.folder.glob(f"{bucket}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def drop_smaller(self) -> None:
        """Delete what was published in fewer buckets, when there were fewer users."""
        for folder in self.folder.parent.glob("of-*"):
            if folder.name.removeprefix("of-").isdecimal() and (
                int(folder.name.removeprefix("of-")) < self.buckets
            ):
                shutil.rmtree(folder, ignore_errors=True)

    def relation(self, manifest: Manifest, name: str) -> str:
        """SQL: a bucket's rows of one of `PUBLISHED`."""
        return f"read_parquet({literal(self.file(manifest, name))}, hive_partitioning = false)"
