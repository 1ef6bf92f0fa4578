"""The sample shop: simulated data that comes with the package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..errors import QAgentError


def sample_data_folder() -> Path:
    """The folder of products.parquet, events.parquet and simulator.json."""
    import qagent_sample  # type: ignore[import-not-found, unused-ignore]

    return Path(qagent_sample.__path__[0])


def remove_sample_shop(path: str | Path, name: str) -> None:
    """Delete a sample shop that was made under a name, its policies and runs included.

    Raises:
        QAgentError: the folder holds anything else.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not is_sample_shop(path, name):
        raise QAgentError(
            f"{path} holds something else than a {name} shop; choose another --shop folder"
        )
    shutil.rmtree(path)


def is_sample_shop(path: str | Path, name: str) -> bool:
    """Whether a folder holds a simulated shop of that name."""
    try:
        settings = json.loads((Path(path) / "shop.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(settings, dict)
        and bool(settings.get("simulated"))
        and settings.get("name") == name
    )
