"""``qagent serve``."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.utils.settings import merge

from .console import note
from .options import Changes, SettingOption, setting_options, shop_option
from .param_types import DTYPE, EXISTING_FILE, POLICY


@click.command()
@click.option(
    "--token-file",
    cls=SettingOption,
    setting="token",
    type=EXISTING_FILE,
    help="A file that holds the token which clients send; or put it into QAGENT_TOKEN.",
)
@setting_options(
    ServeConfig,
    *("host", "port", "policy", "k", "chains", "workers", "deadline_ms", "batch"),
    *(
        "cache_seconds",
        "think",
        "think_seconds",
        "think_users",
        "rate",
        "proxy",
        "connections",
        "read_only",
        "record",
        "explore",
        "watch",
        "dtype",
    ),
    into="changes",
    policy={"type": POLICY},
    chains={"flags": ("--group", "--chains"), "metavar": "N"},
    proxy={"metavar": "ADDRESS"},
    connections={"metavar": "N"},
    think_seconds={"metavar": "S"},
    think_users={"metavar": "N"},
    workers={"metavar": "N"},
    deadline_ms={"flags": ("--deadline",), "metavar": "MS"},
    cache_seconds="--cache",
    watch={"flags": ("--no-watch",), "help": "Take up no promotion and no newer version."},
    record={"flags": ("--no-record",), "help": "Do not record which queries users are shown."},
    explore={"metavar": "SHARE"},
    dtype={"type": DTYPE},
)
@shop_option
def serve(token_file: Path | None, changes: Changes, shop_path: Path) -> None:
    """Serve recommendations over HTTP.

    POST /recommend, /suggest, /events and /products, GET /search, /users/ID/memory, /healthz and
    /metrics, DELETE /products/ID and /users/ID; GET /openapi.json describes these and the others
    (rules, wishes, experiments). Without --policy it
    follows promotions (qagent policies promote) between two batches; POST /policy changes the
    policy until the next one, and a HUP signal loads it again. A --policy without a version
    means its newest. Other commands work beside it: what they change is taken up within seconds.
    """
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is a policy to load again
    token = os.environ.get("QAGENT_TOKEN", "")
    if token_file is not None:
        token = token_file.read_text(encoding="utf-8", errors="replace").strip()
    config = merge(ServeConfig(token=token), changes)
    try:
        from qagent_mlx.serve.server import run
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is not installed; run: pip install 'qagent-mlx[serve]'"
        ) from error
    run(shop_path, config, note)
