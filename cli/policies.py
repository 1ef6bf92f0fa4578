"""``qagent policies``: the versions of a shop's policies, and which one is promoted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qagent_mlx.utils.settings import merge

from .console import print_table, say, waiting
from .groups import Group
from .options import Changes, Output, json_option, opened, shop_option, split_options
from .param_types import POLICY, SERVING, VERSION

if TYPE_CHECKING:
    from qagent_mlx.policy.promotions import Promotion
    from qagent_mlx.policy.versions import PolicyVersion


@click.group(cls=Group)
def policies() -> None:
    """List, show, promote, roll back, calibrate and remove versions of policies.

    Each training saves a new version: sft@1, sft@2 and so on; sft means the newest. A version
    never changes, and what it was trained on stays. The promoted one answers wherever no policy
    is named: recommend, serve, evaluate, demo and the Python API.
    """


@policies.command("list")
@shop_option
@json_option
def list_policies(shop_path: Path) -> Output:
    """List every version: what it stands on, how good it was, and whether it can be opened."""
    from qagent_mlx.policy.promotions import promoted
    from qagent_mlx.policy.registry import serving_policy
    from qagent_mlx.policy.versions import policies as list_versions

    with opened(shop_path) as shop:
        versions, now, serving = list_versions(shop), promoted(shop), serving_policy(shop)
    document = {
        "promoted": now or None,
        "serving": serving,
        "policies": [version.to_dict() for version in versions],
    }
    return Output(document, lambda: _draw_versions(versions, now, serving))


def _draw_versions(versions: list[PolicyVersion], now: str, serving: str) -> None:
    if versions:
        rows = [
            (
                version.policy,
                version.base or "-",
                ", ".join(version.trained) or "-",
                "-" if version.validation is None else f"{version.validation:.3f}",
                version.created[:16].replace("T", " "),
                f"{version.bytes / 1e6:.1f}",
                "cannot be opened" if version.problem else "promoted" if version.promoted else "",
            )
            for version in versions
        ]
        columns = ("policy", "base", "trained", "reward", "saved (UTC)", "MB", "")
        print_table(columns, rows, numbers=("reward", "MB"))
    for version in versions:
        if version.problem:
            say(f"{version.policy} cannot be opened: {version.problem}")
    if not now:
        say(f"none is promoted; where none is named, {serving} answers ({SERVING}, else sample)")
    elif not any(version.promoted for version in versions):
        say(f"promoted: {now}")


@policies.command()
@click.argument("policy", type=POLICY, default="promoted")
@shop_option
@json_option
def show(policy: str, shop_path: Path) -> Output:
    """Show a version, and the promotions that named it. Without POLICY: the promoted one."""
    from qagent_mlx.policy.promotions import promotions
    from qagent_mlx.policy.versions import policy_version

    with opened(shop_path) as shop:
        version = policy_version(shop, policy)
        changes = [c for c in promotions(shop) if version.policy in (c.policy, c.previous)]
    document = {**version.to_dict(), "promotions": [change.to_dict() for change in changes]}

    def draw() -> None:
        values: dict[str, Any] = version.to_dict()
        values["bytes"] = f"{version.bytes:,}"
        values["trained"] = ", ".join(version.trained)
        values["chances"] = chances_text(values.pop("calibration"))
        values["problem"] = version.problem or "none; it can be opened"
        print_table(("", ""), [(name, _text(value)) for name, value in values.items()])
        for change in changes:
            say(f"{change.at[:16].replace('T', ' ')} {change.action} by {change.by}: {_of(change)}")

    return Output(document, draw)


@policies.command()
@click.argument("policy", type=VERSION)
@shop_option
@json_option
def promote(policy: str, shop_path: Path) -> Output:
    """Let POLICY answer wherever none is named; a running server takes it up within seconds.

    NAME promotes its newest version, NAME@N a certain one, and sample the shipped policy.
    """
    from qagent_mlx.policy import versions

    with opened(shop_path) as shop:
        return _changed(versions.promote(shop, policy))


@policies.command()
@shop_option
@json_option
def rollback(shop_path: Path) -> Output:
    """Go back to the policy that was promoted before; a running server does so too."""
    from qagent_mlx.policy import versions

    with opened(shop_path) as shop:
        return _changed(versions.rollback(shop))


@policies.command()
@click.argument("policy", type=POLICY, default="promoted")
@split_options
@shop_option
@json_option
def calibrate(policy: str, split: Changes, shop_path: Path) -> Output:
    """Learn how often what POLICY recommends is right. Without POLICY: the promoted one.

    Training does so at its end; this is for policies of before, or to follow how users search now.
    It is learned on the validation cases. The chance beside a recommended query is that the user's
    next search that leads to something is this very query. The policy itself stays as it is.
    """
    from qagent_mlx.environment.config import SplitConfig
    from qagent_mlx.environment.recalibration import recalibrate
    from qagent_mlx.policy.registry import lasting_name

    with opened(shop_path, snapshot=True) as shop:
        reference = lasting_name(shop, policy)
        with waiting("recommending in the validation cases"):
            found = recalibrate(shop, policy, merge(SplitConfig(), split)).to_dict()
    text = f"{reference}: {chances_text(found)}"
    return Output({"policy": reference, **found}, lambda: say(text))


def chances_text(found: dict[str, Any] | None) -> str:
    """What a policy's chances were learned from, and how far they can be trusted."""
    if found is None:
        return "not learned; run: qagent policies calibrate"
    learned = f"learned on {found['cases']:,} validation cases"
    if found["error"] is None:
        return f"{learned}; its chains recommended nothing there, so these are memory's chances"
    return f"{learned}, calibration error {found['error']:.3f} on cases left out in turn"


@policies.command()
@click.argument("names", nargs=-1, required=True, type=VERSION, metavar="POLICY...")
@click.option("--cascade", is_flag=True, help="Also remove policies that were trained from those.")
@click.option(
    "--force",
    is_flag=True,
    help="Also remove a promoted policy; the one promoted before it takes over.",
)
@shop_option
@json_option
def rm(names: tuple[str, ...], cascade: bool, force: bool, shop_path: Path) -> Output:
    """Remove versions for good. One that others stand on is kept, and they are named."""
    from qagent_mlx.policy import versions

    with opened(shop_path) as shop:
        removal = versions.remove(shop, names, cascade=cascade, force=force)
    said = f"removed {', '.join(removal.removed)}"
    if force:
        said += f"; promoted: {removal.promoted or 'none'}"
    return Output(removal.to_dict(), lambda: say(said))


def _changed(change: Promotion) -> Output:
    return Output(change.to_dict(), lambda: say(_of(change)))


def _of(change: Promotion) -> str:
    return f"promoted: {change.policy or 'none'}; before: {change.previous or 'none'}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in (None, "") else str(value)
