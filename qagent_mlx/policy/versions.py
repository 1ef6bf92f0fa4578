"""The versions of a shop's policies: list, promote, roll back, remove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..models.download import shipped_name
from ..shop.policy_folders import (
    Reservation,
    all_versions,
    parse_reference,
    policies_lock,
    remove_version,
    reservations,
    version_folders,
)
from ..shop.shop import Shop
from ..utils.settings import SettingError
from . import calibration
from .files import base_of, check_policy, read_info
from .promotions import Promotion, before_promoted, promoted, promotions, record
from .registry import SHIPPED_POLICIES, by_age, created_at, lasting_name, resolve


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """A version of a policy.

    Attributes:
        policy: ``NAME@N``.
        name: The name alone.
        version: The number alone.
        promoted: Whether it is the promoted one.
        base: What it stands on: ``NAME@N``, ``sample`` or a folder; empty for a whole model.
        trained: The stages of training, oldest first.
        run: The run that trained it last; empty where no run did.
        validation: Mean reward of greedy chains on validation cases after its training; None
            where it is not known.
        created: When it was saved, in UTC.
        bytes: Of all its files.
        problem: Why it cannot be opened; empty where it can.
        folder: Where it lies.
        calibration: On how many validation ``cases`` it learned the chances of what it recommends,
            their ``error`` on cases left out in turn, and when; None where it did not.
    """

    policy: str
    name: str
    version: int
    promoted: bool
    base: str
    trained: list[str]
    run: str
    validation: float | None
    created: str
    bytes: int
    problem: str
    folder: str
    calibration: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Removal:
    """What was removed, and the policy that is promoted now (empty for none)."""

    removed: list[str]
    promoted: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def policies(shop: Shop) -> list[PolicyVersion]:
    """Every version of the shop's policies, in the order in which they were saved."""
    now = promoted(shop)
    return [_describe(reference, folder, now) for reference, folder in by_age(shop).items()]


def policy_version(shop: Shop, name: str) -> PolicyVersion:
    """One version, by ``NAME`` or ``NAME@N``.

    Raises:
        QAgentError: the shop has none of that name.
    """
    return _describe(_reference(shop, name), resolve(shop, name), promoted(shop))


def promote(shop: Shop, name: str) -> Promotion:
    """Use a policy from now on where nobody names one; a running server takes it up.

    Where it is promoted already nothing changes, so the same can be done again, by cron say.

    Args:
        shop: A shop that is open for reading is enough.
        name: ``NAME`` for its newest version, ``NAME@N`` for a certain one, or ``sample``.

    Raises:
        QAgentError: it does not exist, or cannot be opened.
    """
    with policies_lock(shop.path / "policies"):
        policy = shipped_name(resolve(shop, name)) or _reference(shop, name)
        if policy == promoted(shop):
            return promotions(shop)[-1]
        check_policy(resolve(shop, policy))
        return record(shop, policy, "promote")


def rollback(shop: Shop) -> Promotion:
    """Go back to the policy that was promoted before; those removed since are passed over.

    Raises:
        QAgentError: none was, or it cannot be opened.
    """
    with policies_lock(shop.path / "policies"):
        policy = _promoted_before(shop, ())
        if not policy:
            now = promoted(shop)
            raise QAgentError(
                f"nothing was promoted before {now}; promote another policy: qagent policies list"
                if now
                else "no policy is promoted; see: qagent policies list"
            )
        check_policy(resolve(shop, policy))
        return record(shop, policy, "rollback")


def remove(
    shop: Shop, names: Sequence[str], *, cascade: bool = False, force: bool = False
) -> Removal:
    """Delete versions for good; a number is never given to another version.

    Args:
        shop: Open for reading is enough.
        names: ``NAME@N``, or ``NAME`` of one that has a single version. An unfinished version
            may be named too: its run then cannot save it.
        cascade: Also remove what stands on them.
        force: Also the promoted policy; the one before it is promoted then.

    Raises:
        SettingError: another policy or an unfinished run stands on one, or it is promoted.
    """
    folder = shop.path / "policies"
    with policies_lock(folder):
        unfinished = {r.reference: r for r in reservations(folder)}
        targets = [_removable(shop, name, unfinished) for name in dict.fromkeys(names)]
        standing = _standing_on(shop, unfinished)
        doomed = _with_dependents(targets, standing)
        others = [reference for reference in doomed if reference not in targets]
        if others and not cascade:
            named = ", ".join(_title(reference, unfinished) for reference in others)
            raise SettingError(
                "cascade",
                f"must be set to remove {', '.join(targets)}: {named} "
                f"{'stand' if len(others) > 1 else 'stands'} on it",
            )
        now = promoted(shop)
        if now in doomed and not force:
            raise SettingError(
                "force", f"must be set to remove {now}, which is promoted; or promote another first"
            )
        if now in doomed:
            record(shop, _promoted_before(shop, doomed), "remove")
        for reference in reversed(doomed):  # what stands on others first, if this is killed
            name, number = parse_reference(reference)
            remove_version(folder, name, number or 1)
        return Removal(doomed, promoted(shop))


def _reference(shop: Shop, name: str) -> str:
    """``NAME@N`` of a policy of the shop.

    Raises:
        QAgentError: it is none.
    """
    reference = lasting_name(shop, name)
    if parse_reference(reference)[1] is None:
        raise QAgentError(f"{name} is no policy of {shop.path}; see: qagent policies list")
    return reference


def _describe(reference: str, folder: Path, now: str) -> PolicyVersion:
    name, number = parse_reference(reference)
    problem, base = "", ""
    stages: tuple[dict[str, Any], ...] = ()
    try:
        info = read_info(folder)
        assert info is not None  # all_versions lists no folder without policy.json
        base, stages = info.base, info.trained
        check_policy(folder)
    except QAgentError as error:
        problem = str(error)
    last: dict[str, Any] = stages[-1] if stages else {}
    validation = last.get("validation")
    return PolicyVersion(
        policy=reference,
        name=name,
        version=number or 1,
        promoted=reference == now,
        base=shipped_name(base) or base,
        trained=[str(stage.get("stage", "")) for stage in stages],
        run=str(last.get("run", "")),
        validation=validation if isinstance(validation, float) else None,
        created=created_at(folder).isoformat(timespec="seconds"),
        bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        problem=problem,
        folder=str(folder),
        calibration=found.to_dict() if (found := calibration.read(folder)) else None,
    )


def _promoted_before(shop: Shop, doomed: Sequence[str]) -> str:
    """The policy that was promoted last before this one and is still there; empty for none."""
    there = {*SHIPPED_POLICIES, *all_versions(shop.path / "policies")} - {promoted(shop), *doomed}
    return next((policy for policy in before_promoted(shop) if policy in there), "")


def _removable(shop: Shop, name: str, unfinished: dict[str, Reservation]) -> str:
    """``NAME@N`` of what is to be removed."""
    if name in unfinished:
        return name
    bare, number = parse_reference(name)
    versions = version_folders(shop.path / "policies", bare)
    if number is None and len(versions) > 1:
        there = ", ".join(f"{bare}@{n}" for n in versions)
        raise QAgentError(f"{bare} has several versions; name those to remove: {there}")
    return _reference(shop, name)


def _standing_on(shop: Shop, unfinished: dict[str, Reservation]) -> dict[str, list[str]]:
    """Reference -> the versions, unfinished ones among them, that stand on it directly."""
    versions = all_versions(shop.path / "policies")
    references = {folder.resolve(): reference for reference, folder in versions.items()}
    standing: dict[str, list[str]] = {}
    for reference, folder in versions.items():
        try:
            info = read_info(folder)
            base = base_of(folder, info).resolve() if info is not None and info.base else None
        except QAgentError:
            continue  # damaged, or its base is gone
        if base in references:
            standing.setdefault(references[base], []).append(reference)
    for reference, reservation in unfinished.items():
        if reservation.base:
            standing.setdefault(reservation.base, []).append(reference)
    return standing


def _with_dependents(targets: Sequence[str], standing: dict[str, list[str]]) -> list[str]:
    """Targets and all that stands on them; what stands on another comes after it."""
    found: dict[str, None] = {}

    def visit(reference: str) -> None:
        if reference not in found:
            for dependent in standing.get(reference, ()):
                visit(dependent)
            found[reference] = None

    for target in targets:
        visit(target)
    return [*found][::-1]


def _title(reference: str, unfinished: dict[str, Reservation]) -> str:
    reservation = unfinished.get(reference)
    if reservation is None:
        return reference
    return f"the unfinished {reference}{f' of the run {reservation.run}' * bool(reservation.run)}"
