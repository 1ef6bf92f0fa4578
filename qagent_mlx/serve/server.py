"""Run a server until it is told to stop."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from ..errors import QAgentError
from .config import ServeConfig
from .connections import protocol
from .http import create_app
from .worker import Worker

# For how long a thread computes while another one wants to. By default 5 ms: then what needs no
# computing, such as a completion, would wait for that long several times.
SWITCH_SECONDS = 0.0005


def run(path: Path, config: ServeConfig, say: Callable[[str], None]) -> None:
    """Serve a shop until SIGINT or SIGTERM; requests that have come are answered first.

    Args:
        path: The shop's folder.
        config: Settings of the server.
        say: Called with a line when the server is ready.

    Raises:
        QAgentError: the settings are unsafe, the port is taken, or the shop cannot be served.
    """
    app = create_app(path, config)
    worker: Worker = app.state.service.worker
    ignore_hangups()
    worker.start()  # its errors are the user's, so they come before the server's own words
    try:
        _serve(app, worker, path, config, say)
    finally:
        worker.stop()


def ignore_hangups() -> None:
    """Let SIGHUP pass, which loads the policy again once the server answers and has none before."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _serve(
    app: Starlette, worker: Worker, path: Path, config: ServeConfig, say: Callable[[str], None]
) -> None:
    """Listen and answer until a signal comes; the worker has started."""
    _log_to_stderr()
    sys.setswitchinterval(SWITCH_SECONDS)
    settings = uvicorn.Config(
        app,
        http=protocol(config.connections),
        ws="none",
        proxy_headers=False,  # the middleware knows which proxy may be believed
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=32 * 1024,
        timeout_graceful_shutdown=10,
    )
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        # Whoever comes after the line below is let in.
        listening = socket.create_server(
            (config.host, config.port), family=family, backlog=settings.backlog
        )
    except OSError as error:  # uvicorn's own `bind_socket` would log it as well
        raise QAgentError(
            f"cannot listen on {config.host}:{config.port}; choose another port or host"
        ) from error
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: worker.call(worker.responder.reload_policy))
    host, port = listening.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    say(f"{worker.responder.served.name} serves {path} on http://{address}:{port}  (Ctrl-C stops)")
    uvicorn.Server(settings).run(sockets=[listening])


def _log_to_stderr() -> None:
    """Log a line for each request and each error, also for uvicorn's own errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("qagent.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
