"""``qagent serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from .common import PLAIN, POLICY, dtype_option, note, shop_option


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    type=PLAIN,
    help="Where to listen; beyond this machine a token is needed.",
)
@click.option(
    "--port",
    default=8800,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0 takes a free one.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A file that holds the token which clients send; or put it into QAGENT_TOKEN.",
)
@click.option("--policy", type=POLICY, help="Which policy.  [default: grpo, else the newest]")
@click.option("-k", default=5, show_default=True, type=click.IntRange(1, 100), help="Queries.")
@click.option(
    "--group",
    "--chains",
    "chains",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Chains a user, and the most that a request may ask for.  [default: 2 of a policy "
    "trained by GRPO, else 8; a request may ask for 8]",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    metavar="N",
    help="Processes that decode; one a core is most. Each takes about 300 MB.",
)
@click.option(
    "--deadline",
    default=1000.0,
    show_default=True,
    type=click.FloatRange(1.0, 60_000.0),
    metavar="MS",
    help="Of a request that names none; then it gets a fallback.",
)
@click.option(
    "--batch", default=32, show_default=True, type=click.IntRange(1), help="Users in one decode."
)
@click.option(
    "--cache",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0.0),
    metavar="SECONDS",
    help="How long an answer is good when its user does nothing; 0 for never.",
)
@click.option(
    "--rate",
    default=200.0,
    show_default=True,
    type=click.FloatRange(0.0),
    help="Requests a second of one client; 0 for no limit.",
)
@click.option("--read-only", is_flag=True, help="Refuse events; others may read the shop.")
@click.option("--no-watch", is_flag=True, help="Do not take up a policy that is trained anew.")
@dtype_option
@shop_option
def serve(
    *,
    host: str,
    port: int,
    token_file: Path | None,
    policy: str | None,
    k: int,
    chains: int | None,
    workers: int,
    deadline: float,
    batch: int,
    cache: float,
    rate: float,
    read_only: bool,
    no_watch: bool,
    dtype: str | None,
    shop_path: Path,
) -> None:
    """Serve recommendations over HTTP.

    POST /recommend and /events, GET /search, /users/ID/memory, /healthz, /metrics and
    /openapi.json; POST /policy changes the policy, and so does a HUP signal after it was
    trained again. While it runs no other process can open the shop, unless it is read only.
    """
    from qagent_mlx.errors import QAgentError

    token = os.environ.get("QAGENT_TOKEN", "")
    if token_file is not None:
        token = token_file.read_text(encoding="utf-8", errors="replace").strip()
    try:
        from qagent_mlx.serve.config import ServeConfig
        from qagent_mlx.serve.server import run
    except ModuleNotFoundError as error:
        raise QAgentError(
            f"{error.name} is not installed; run: pip install 'qagent-mlx[serve]'"
        ) from error
    values: dict[str, Any] = {
        "host": host,
        "port": port,
        "token": token,
        "policy": policy or "",
        "dtype": dtype or "",
        "k": k,
        "chains": chains,
        "workers": workers,
        "deadline_ms": deadline,
        "batch": batch,
        "cache_seconds": cache,
        "rate": rate,
        "read_only": read_only,
        "watch": not no_watch,
    }
    run(shop_path, ServeConfig(**values), note)
