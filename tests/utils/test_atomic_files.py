import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.errors import QAgentError
from qagent_mlx.utils.atomic_files import (
    clear_leftovers,
    locked,
    read_json,
    replacing,
    replacing_files,
    replacing_folder,
    write_json,
    write_text,
    write_with,
)


@given(old=st.binary(max_size=50), new=st.binary(max_size=50), at=st.integers(0, 50))
def test_a_block_that_raises_leaves_the_old_file(old, new, at):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some.bin"
        path.write_bytes(old)
        with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
            temporary.write_bytes(new[:at])
            raise ZeroDivisionError
        assert path.read_bytes() == old
        assert list(Path(folder).iterdir()) == [path]
        with replacing(path) as temporary:
            temporary.write_bytes(new)
            assert path.read_bytes() == old
        assert path.read_bytes() == new
        assert list(Path(folder).iterdir()) == [path]


def test_the_temporary_file_keeps_the_suffix_and_folders_are_made(tmp_path):
    path = tmp_path / "deep" / "er" / "weights.safetensors"
    write_with(path, lambda name: Path(name).write_text(Path(name).suffix))
    assert path.read_text() == ".safetensors"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x.json"
    with pytest.raises(QAgentError, match="cannot write .*x.json.*choose a folder"):
        write_json(path, {})


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def full(name):
        Path(name).write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(QAgentError, match="x.json: No space left on device; free some space"):
        write_with(path, full)
    assert read_json(path, "it") == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_there_is_a_whole_file_up_to_the_last_moment(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_json(path, {"new": 2})
    assert read_json(path, "it") == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal
from pathlib import Path
from qagent_mlx.utils.atomic_files import *
with {block}:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(block: str) -> None:
    """A process that is killed inside of a block."""
    found = subprocess.run([sys.executable, "-c", KILLED.format(block=block)], check=False)
    assert found.returncode == -9


def test_what_a_killed_writer_left_goes_with_the_next_write_of_the_same_file(tmp_path):
    paths = [tmp_path / "weights.bin", tmp_path / "x.json"]
    killed(f"replacing_files([Path(p) for p in {[str(p) for p in paths]}])")
    killed(f"replacing(Path({str(tmp_path / 'other.json')!r}))")
    (tmp_path / ".0123456789ab-mine.txt").write_text("a file of somebody else's")
    assert len(list(tmp_path.iterdir())) == 4
    with replacing_files(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names[0] == ".0123456789ab-mine.txt"
    assert [name.partition("-")[2] or name for name in names[1:]] == [
        "other.json",
        "weights.bin",
        "x.json",
    ]


def test_nothing_is_cleared_while_somebody_writes_in_the_folder(tmp_path):
    path = tmp_path / "x.json"
    killed(f"replacing(Path({str(path)!r}))")
    with replacing(path) as first:
        first.unlink()  # as writers do that make their files themselves
        first.write_text("1")
        with replacing(path) as second:
            second.write_text("2")
        clear_leftovers(tmp_path)
        assert first.read_text() == "1"
        assert len(list(tmp_path.iterdir())) == 3
    assert path.read_text() == "1"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_files_and_folders_have_the_rights_that_the_umask_gives(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "text")
        with replacing_folder(tmp_path / "folder") as folder:
            (folder / "inside").write_text("text")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("file", "folder")]
    assert modes == [0o666 & ~mask, 0o777 & ~mask]


def test_a_folder_takes_its_place_whole_and_clears_what_killed_ones_left(tmp_path):
    target = tmp_path / "model [1]"
    killed(f"replacing_folder(Path({str(target)!r}))")
    (tmp_path / f".{target.name}.settings").mkdir()  # somebody else's
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ZeroDivisionError), replacing_folder(target):
        raise ZeroDivisionError
    for text in ("one", "two"):
        with replacing_folder(target) as made:
            (made / "file").write_text(text)
        assert (target / "file").read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == [".model [1].settings", "model [1]"]


HOLDING = """
import sys
from pathlib import Path
from qagent_mlx.utils.atomic_files import locked
with locked(Path(sys.argv[1]), "held by {}"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_names_its_holder_and_ends_with_it_however_that_ends(tmp_path):
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        for wait in (0, 0.2):  # whoever waits in vain leaves the name as it is
            with (
                pytest.raises(QAgentError, match=f"^held by process {process.pid}$"),
                locked(path, "held by {}", wait),
            ):
                pass
        process.kill()
    with locked(path, "held by {}", 5):
        assert path.read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back_in_any_script(tmp_path):
    value = {"größe": ["ย", "😀", None, 1.5], "nested": {"a": True}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", "it") == value
    assert "größe" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_files_do_not_depend_on_the_locale(tmp_path):
    code = (
        "import warnings; from pathlib import Path\n"
        "from qagent_mlx.utils.atomic_files import read_json, write_json\n"
        "warnings.simplefilter('error', EncodingWarning)\n"
        f"path = Path({str(tmp_path / 'x.json')!r})\n"
        "write_json(path, ['ß']); assert read_json(path, 'it') == ['ß']"
    )
    subprocess.run([sys.executable, "-X", "warn_default_encoding", "-c", code], check=True)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(QAgentError, match=r"the run is damaged: .*x\.json") as error:
        read_json(path, "the run")
    assert "\n" not in str(error.value)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(QAgentError, match=r"the run has no x\.json"):
        read_json(tmp_path / "x.json", "the run")
