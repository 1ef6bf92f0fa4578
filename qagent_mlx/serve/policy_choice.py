"""Which policy a server recommends with, and that policy as it was saved."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..policy import calibration
from ..policy.files import load_policy
from ..policy.policy import Policy
from ..policy.promotions import promoted, stamp
from ..policy.registry import resolve, serving_policy
from ..shop.policy_folders import parse_reference
from ..shop.shop import Shop
from ..utils.runtime import release_mlx_with_thread


@dataclass(frozen=True, slots=True)
class SavedPolicy:
    """A policy that was loaded from a folder, and when that had been saved."""

    folder: Path
    saved_at: int | None
    policy: Policy


def load_saved(folder: Path, dtype: str) -> SavedPolicy:
    """Load a policy, in any thread: its weights are computed when this returns.

    Raises:
        QAgentError: it cannot be loaded.
    """
    release_mlx_with_thread()
    before = saved_at(folder)
    policy = load_policy(folder, dtype)
    mx.eval(policy.model.parameters())
    return SavedPolicy(folder, before, policy)


def saved_at(folder: Path) -> int | None:
    """Changes when a policy is saved (``policy.json`` is written last) or calibrated anew."""
    for name in ("policy.json", "config.json"):
        try:
            saved = (folder / name).stat().st_mtime_ns
            with suppress(OSError):
                saved = max(saved, (folder / calibration.FILE).stat().st_mtime_ns)
            return saved
        except OSError:
            continue
    return None


class PolicyChoice:
    """Chooses the policy: the one that was named, else the promoted one, else the default.

    A policy that is named without a version means its newest version. One that a client named
    stays until the next promotion; one that the server was started with stays.

    Args:
        shop: The shop's folder is read again and again.
        named: The policy that the server was started with; empty for none.
    """

    def __init__(self, shop: Shop, named: str) -> None:
        self._shop, self._named, self._chosen = shop, named, ""
        self._chosen_at = stamp(shop)
        self._default = "" if named else parse_reference(serving_policy(shop))[0]

    def choose(self, name: str) -> None:
        """Recommend with this policy until the next promotion."""
        self._chosen, self._chosen_at = name, stamp(self._shop)

    def folder(self) -> Path:
        """The folder of the policy that should recommend now.

        Raises:
            QAgentError: there is none.
        """
        if self._chosen and (self._named or stamp(self._shop) == self._chosen_at):
            return resolve(self._shop, self._chosen)
        return resolve(self._shop, self._named or promoted(self._shop) or self._default)
