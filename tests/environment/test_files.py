"""What a run's folder keeps of its cases, as it is written now and as it was written before."""

import json
from datetime import datetime

import duckdb
import numpy as np
import pytest

from qagent_mlx.environment.files import read_cases, read_columns, write_cases, write_columns
from qagent_mlx.types import Case, Line, Profile, UserContext

NOW = datetime(2026, 2, 1, 3, 4, 5, 678)
CASE = Case(7, "zoë", NOW, "usb ‹c› cable", "usbcable", ("p1", "p2"), 3, "validation")
LINES = (Line("identity", "likes tea", 0.0), Line("latest", "usb now", 0.1, "usb", "because"))
CONTEXT = UserContext({"acme": 0.3}, {"$": 1.0}, {"red": 0.125}, ("p3",), ("p4", "p5"))
PROFILE = Profile("zoë", NOW, "likes tea\nusb now <r0>", LINES, ("usb",), 9, CONTEXT)
EMPTY = Profile("u", NOW, "", (), ())


def test_cases_and_profiles_come_back_as_they_were(tmp_path):
    other = Case(8, "u", NOW, "x", "x", (), 0, "test")
    write_cases(tmp_path / "cases.parquet", [(CASE, PROFILE), (other, EMPTY)])
    assert read_cases(tmp_path / "cases.parquet") == [(CASE, PROFILE), (other, EMPTY)]


def test_cases_of_earlier_versions_are_read(tmp_path):
    """They also held ``raw_tokens``."""
    path = tmp_path / "cases.parquet"
    write_cases(path, [(CASE, PROFILE)])
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE old AS FROM read_parquet('{path}')")
        ((text,),) = connection.execute("SELECT profile_json FROM old").fetchall()
        connection.execute(
            "UPDATE old SET profile_json = ?", [json.dumps({**json.loads(text), "raw_tokens": 12})]
        )
        connection.execute(f"COPY old TO '{path}' (FORMAT parquet)")
    assert read_cases(path) == [(CASE, PROFILE)]


def test_columns_come_back_as_they_were(tmp_path):
    columns = {"key": np.array(["a", "b"], dtype=object), "weight": np.array([0.1, 3.0])}
    write_columns(tmp_path / "clicks.parquet", columns)
    found = read_columns(tmp_path / "clicks.parquet")
    assert {name: values.tolist() for name, values in found.items()} == {
        "key": ["a", "b"],
        "weight": [0.1, 3.0],
    }


def test_a_file_that_is_missing_or_damaged_is_an_error_of_the_database(tmp_path):
    (tmp_path / "cases.parquet").write_bytes(b"no parquet")
    for path in (tmp_path / "cases.parquet", tmp_path / "gone.parquet"):
        with pytest.raises(duckdb.Error):
            read_cases(path)
