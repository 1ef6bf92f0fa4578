"""A folder of a data set's raw files, told apart by their names."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from ...errors import QAgentError
from ...shop.shop import Shop
from ...utils.database import copy_parquet, literal
from ...utils.process_folder import process_folder
from ..ingest import ingest_files
from ..options import ReadOptions
from ..report import IngestReport


class Folder:
    """A folder of raw files, and an in-memory database to read them into."""

    def __init__(self, folder: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self.folder, self.connection = folder, connection

    def find(self, *patterns: str) -> Path | None:
        """The first file that matches the first pattern that any file matches."""
        for pattern in patterns:
            files = sorted(path for path in self.folder.glob(pattern) if path.is_file())
            if files:
                return files[0]
        return None

    def need(self, name: str, *patterns: str) -> Path:
        """The file that `find` finds; raises QAgentError where there is none."""
        path = self.find(*patterns)
        if path is None:
            raise QAgentError(
                f"{self.folder} has no {name} ({' or '.join(patterns)}), which the preset reads"
            )
        return path

    def table(self, name: str, path: Path, *required: str) -> set[str]:
        """Read a file as a table, CSV columns as text; returns its columns.

        Raises:
            QAgentError: it cannot be read, or lacks a column.
        """
        form = path.name.lower().removesuffix(".gz")
        if form.endswith((".parquet", ".pq")):
            relation = f"read_parquet({literal(path)})"
        elif form.endswith((".jsonl", ".ndjson", ".json")):
            relation = f"read_json({literal(path)}, format='newline_delimited', sample_size=-1)"
        else:
            relation = f"read_csv({literal(path)}, all_varchar=true, header=true)"
        try:
            self.connection.execute(f"CREATE TABLE {name} AS SELECT * FROM {relation}")
        except duckdb.Error as error:
            raise QAgentError(f"{path}: {str(error).splitlines()[0]}") from error
        columns = {row[0] for row in self.rows(f"DESCRIBE {name}")}
        missing = [column for column in required if column not in columns]
        if missing:
            raise QAgentError(
                f"{path} has no column {missing[0]}; its columns are {', '.join(sorted(columns))}"
            )
        return columns

    def rows(self, query: str) -> list[Any]:
        """The rows of a query."""
        return self.connection.execute(query).fetchall()

    def ingest_products(
        self, shop: Shop, query: str, options: ReadOptions | None = None
    ) -> IngestReport:
        """Products from a query; they go through a file, as all products do."""
        with TemporaryDirectory(dir=process_folder()) as folder:
            path = Path(folder) / "products.parquet"
            copy_parquet(self.connection, query, path)
            return ingest_files(shop, "products", [path], options)
