"""The sample shop: simulated data that comes with the package."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import QAgentError
from ..utils.atomic_files import read_json


def sample_data_folder() -> Path:
    """The package's folder of products.parquet, events.parquet and simulator.json."""
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
        raise QAgentError(f"{path} holds something else than a {name} shop; choose another folder")
    shutil.rmtree(path)


def is_sample_shop(path: str | Path, name: str) -> bool:
    """Whether a folder holds a simulated shop of that name."""
    try:
        settings = read_json(Path(path) / "shop.json", "the shop")
    except QAgentError:
        return False
    return (
        isinstance(settings, dict)
        and bool(settings.get("simulated"))
        and settings.get("name") == name
    )
