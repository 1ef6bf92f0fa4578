"""Learn the chances of a policy that was saved already: an older one, or as users search now."""

from __future__ import annotations

from ..errors import QAgentError
from ..policy import calibration
from ..policy.calibration import Calibration
from ..policy.registry import lasting_name, open_policy, resolve
from ..shop.policy_folders import parse_reference, policies_lock
from ..shop.shop import Shop
from .config import SplitConfig
from .environment import Environment
from .served_slates import FEWEST_CASES, MOST_CASES, calibrate


def recalibrate(shop: Shop, name: str, split: SplitConfig | None = None) -> Calibration:
    """Learn on the shop's validation cases what a policy's votes are worth, and keep it with it.

    Its weights stay as they are; a running server takes the chances up.

    Args:
        shop: Open for reading is enough.
        name: ``NAME`` for its newest version, ``NAME@N`` for a certain one.
        split: Which cases are for validation.

    Raises:
        QAgentError: it is no policy of the shop, cannot be opened, or there are too few cases.
    """
    reference = lasting_name(shop, name)
    if parse_reference(reference)[1] is None:
        raise QAgentError(
            f"{name} is no policy of {shop.path}, so no chances can be kept with it; train one on "
            "it, which learns them: qagent train sft"
        )
    policy = open_policy(shop, reference)
    last = {"validation": MOST_CASES}
    environment = Environment.of_shop(shop, policy.codec, policy.info.agent, split, last)
    found = calibrate(environment, policy)
    if found is None:
        raise QAgentError(
            f"{len(environment.examples)} validation cases are too few to learn chances from, "
            f"{FEWEST_CASES} are needed; ingest a longer log or raise validation_share"
        )
    with policies_lock(shop.path / "policies"):
        calibration.write(resolve(shop, reference), found)
    return found
