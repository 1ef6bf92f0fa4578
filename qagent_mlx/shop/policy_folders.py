"""Where a shop keeps its policies: every version in a folder of its own, which never changes.

    policies/NAME/N/              version N of a policy, from 1
    policies/NAME/.N.json         the number N is taken: by a training that has not ended (a
                                  `Reservation`), or by a version that was removed
    policies/NAME/.N.writing-…/   a version that is being written, or a killed writer's remains
    policies/.promotions.json     see `policy.promotions`
    policies/.lock                held while any of that changes

A number is given once. Shops of before versions have the files in policies/NAME itself: they are
read as the version that they become when the shop is opened for writing (`migrate_unversioned`).
What an older program writes there becomes one more version, so it cannot harm the others.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..utils.atomic_files import (
    link_or_copy,
    locked,
    new_folder,
    read_json,
    sync_folder,
    write_json,
)

DESCRIPTION = "policy.json"  # the file without which a folder is no policy
LOCK_SECONDS = 30.0  # that a change of the policies waits for another one
_RESERVED = re.compile(r"\.([1-9]\d*)\.json")
_WRITING = re.compile(r"\.[1-9]\d*\.writing-\w+")
_VERSION = re.compile(r"[1-9]\d{0,8}")


@dataclass(frozen=True, slots=True)
class Reservation:
    """A version that a training is going to save.

    Attributes:
        name: Of the policy.
        number: Of the version.
        base: The version that it stands on, as ``NAME@N``; empty for one without a base here.
        run: The run that trains it; empty where none is recorded.
    """

    name: str
    number: int
    base: str = ""
    run: str = ""

    @property
    def reference(self) -> str:
        """``NAME@N``."""
        return f"{self.name}@{self.number}"


def parse_reference(text: str) -> tuple[str, int | None]:
    """``sft@2`` as (``sft``, 2), ``sft`` as (``sft``, None); other text is a name as it stands."""
    name, sign, number = text.rpartition("@")
    if sign and name and _VERSION.fullmatch(number):
        return name, int(number)
    return text, None


def policies_of(folder: Path) -> Path | None:
    """The shop's ``policies`` folder that a policy's folder lies in; None outside of shops."""
    for policies in list(folder.parents)[:2]:
        if policies.name == "policies" and (policies.parent / "shop.json").exists():
            return policies
    return None


def reference_of(folder: Path) -> str:
    """What a policy's folder is called: ``NAME@N`` in a shop, its own name elsewhere."""
    policies = policies_of(folder)
    if policies is None:
        return folder.name
    if folder.parent != policies:
        return f"{folder.parent.name}@{folder.name}"
    versions = version_folders(policies, folder.name)
    numbers = [number for number, place in versions.items() if place == folder]
    return f"{folder.name}@{numbers[0] if numbers else max(versions, default=1)}"


def names_with_versions(policies: Path) -> list[str]:
    """The names that have a version, in alphabetical order."""
    if not policies.is_dir():
        return []
    names = [path.name for path in policies.iterdir() if not path.name.startswith(".")]
    return sorted(name for name in names if version_folders(policies, name))


def version_folders(policies: Path, name: str) -> dict[int, Path]:
    """Number -> folder of a policy's complete versions, oldest first."""
    versions = _numbered(policies / name)
    if _is_unversioned(policies / name, versions):
        versions[_next_number(policies / name)] = policies / name
    return versions


def all_versions(policies: Path) -> dict[str, Path]:
    """``NAME@N`` -> folder of every complete version."""
    return {
        f"{name}@{number}": folder
        for name in names_with_versions(policies)
        for number, folder in version_folders(policies, name).items()
    }


def _numbered(place: Path) -> dict[int, Path]:
    numbers = [
        int(path.name)
        for path in (place.iterdir() if place.is_dir() else ())
        if _VERSION.fullmatch(path.name) and (path / DESCRIPTION).exists()
    ]
    return {number: place / str(number) for number in sorted(numbers)}


def _is_unversioned(place: Path, versions: dict[int, Path]) -> bool:
    """Whether files of a policy lie in the name's folder that are not a version already."""
    path = place / DESCRIPTION
    try:
        description = path.read_bytes()
    except OSError:
        return False
    # A kill between the two halves of `migrate_policy` leaves the same twice.
    return not any((f / DESCRIPTION).read_bytes() == description for f in versions.values())


def _next_number(place: Path) -> int:
    taken = [0]
    for path in place.iterdir() if place.is_dir() else ():
        if _VERSION.fullmatch(path.name):
            taken.append(int(path.name))
        elif match := _RESERVED.fullmatch(path.name):
            taken.append(int(match[1]))
    return max(taken) + 1


@contextmanager
def policies_lock(policies: Path) -> Iterator[None]:
    """Inside the block no other process adds, removes or promotes a policy of the shop.

    Raises:
        QAgentError: another one does for long, or the folder cannot be written.
    """
    refusal = f"{policies} is being changed by {{}}; wait until it ends, then try again"
    with contextlib.ExitStack() as stack:
        try:
            policies.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(policies / ".lock", refusal, LOCK_SECONDS))
        except OSError as error:
            raise _cannot_write(policies, error) from error
        yield


def reserve(policies: Path, name: str, base: str = "", run: str = "") -> Reservation:
    """Take the next number of a policy; what it stands on is not removed meanwhile.

    Raises:
        QAgentError: the base was removed, or the folder cannot be written.
    """
    with policies_lock(policies):
        _require(policies, base)
        migrate_policy(policies, name)
        _clear_unfinished(policies / name)
        return _reserve(policies, name, base, run)


def _reserve(policies: Path, name: str, base: str, run: str) -> Reservation:
    reservation = Reservation(name, _next_number(policies / name), base, run)
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    note = _note(policies, name, reservation.number)
    write_json(note, {**asdict(reservation), "since": since})
    return reservation


def _require(policies: Path, base: str) -> None:
    if base and base not in all_versions(policies):
        raise QAgentError(
            f"the policy {base} was removed, and nothing can stand on it any more; start from "
            "another one"
        )


def release(policies: Path, reservation: Reservation) -> None:
    """Give a number up; it is not given again where a later one was taken."""
    _note(policies, reservation.name, reservation.number).unlink(missing_ok=True)


def reservations(policies: Path) -> list[Reservation]:
    """The versions that trainings have not saved yet."""
    found = []
    for path in sorted(policies.glob("[!.]*/.*.json")):
        if match := _RESERVED.fullmatch(path.name):
            reservation = _reservation(policies, path.parent.name, int(match[1]))
            # A kill may leave the note of a version that was saved.
            if reservation and not (path.parent / match[1]).exists():
                found.append(reservation)
    return found


def _reservation(policies: Path, name: str, number: int) -> Reservation | None:
    """Who has taken a number; None where nobody has, or the version was removed."""
    path = _note(policies, name, number)
    if not path.exists():
        return None
    values = read_json(path, f"the note on the policy {name}@{number}")
    if not isinstance(values, dict) or "removed" in values:
        return None
    return Reservation(name, number, str(values.get("base", "")), str(values.get("run", "")))


def save_version(
    policies: Path, reservation: Reservation, write: Callable[[Path], Any]
) -> Reservation:
    """Write a version beside its place and rename it; a kill leaves all of it or nothing.

    Returns:
        The reservation; with another number where it was removed while the training ran.

    Raises:
        QAgentError: the folder cannot be written, or what the version stands on was removed.
    """
    place = policies / reservation.name
    try:
        place.mkdir(parents=True, exist_ok=True)
        temporary = new_folder(place, f".{reservation.number}.writing-")
        try:
            write(temporary)
            with policies_lock(policies):
                _require(policies, reservation.base)
                name, number = reservation.name, reservation.number
                if _reservation(policies, name, number) is None:
                    reservation = _reserve(policies, name, reservation.base, reservation.run)
                # A folder that holds something is never replaced by a rename.
                temporary.rename(place / str(reservation.number))
                sync_folder(place)
                release(policies, reservation)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise _cannot_write(place, error) from error
    return reservation


def remove_version(policies: Path, name: str, number: int) -> None:
    """Remove a version or a reservation, under the lock; its number is not given again."""
    place = policies / name
    migrate_policy(policies, name)
    removed = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(_note(policies, name, number), {"removed": removed})
    if (place / str(number)).exists():
        # Renamed first: a kill in the middle leaves nothing that looks like a version.
        gone = new_folder(place, f".{number}.writing-")
        (place / str(number)).rename(gone / "policy")
        sync_folder(place)
        shutil.rmtree(gone, ignore_errors=True)


def migrate_unversioned(policies: Path) -> None:
    """Make versions of policies that lie in their names' folders, as before there were any."""
    with contextlib.suppress(OSError):
        places = [path for path in policies.iterdir() if not path.name.startswith(".")]
        names = [place.name for place in places if (place / DESCRIPTION).is_file()]
        if names:
            with policies_lock(policies):
                for name in names:
                    migrate_policy(policies, name)


def migrate_policy(policies: Path, name: str) -> None:
    """Make a version of what lies in a name's folder, under the lock."""
    place = policies / name
    if not (place / DESCRIPTION).is_file():
        return
    files = [path for path in place.iterdir() if path.is_file() and not _RESERVED.match(path.name)]
    number = _next_number(place)
    if _is_unversioned(place, _numbered(place)):
        temporary = new_folder(place, f".{number}.writing-")
        for path in files:
            # Both names mean the same bytes until the old ones are removed.
            link_or_copy(path, temporary / path.name)
        sync_folder(temporary)
        temporary.rename(place / str(number))
        sync_folder(place)
    for path in sorted(files, key=lambda path: path.name != DESCRIPTION):  # that one first
        path.unlink(missing_ok=True)


def _clear_unfinished(place: Path) -> None:
    """Remove what killed writers of a policy left, a day after."""
    limit = datetime.now().timestamp() - 86_400
    for path in place.iterdir() if place.is_dir() else ():
        if _WRITING.fullmatch(path.name) and path.stat().st_mtime < limit:
            shutil.rmtree(path, ignore_errors=True)


def _note(policies: Path, name: str, number: int) -> Path:
    return policies / name / f".{number}.json"


def _cannot_write(place: Path, error: OSError) -> QAgentError:
    return QAgentError(
        f"cannot write {place}: {error.strerror or error}; free some space or choose a shop "
        "folder you may write to"
    )
