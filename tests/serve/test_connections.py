"""Connections that ask nothing, hang up or come from behind a proxy, over real sockets."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from qagent_mlx.errors import QAgentError
from qagent_mlx.serve import connections
from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.serve.connections import protocol


async def echo(scope, receive, send):
    """Say who asks, once the body is there."""
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
    await PlainTextResponse(scope["client"][0])(scope, receive, send)


@contextlib.contextmanager
def listening(app=echo, limit=500):
    """A server of one connection class in a thread; gives its port."""
    settings = uvicorn.Config(
        app, http=protocol(limit), ws="none", log_config=None, lifespan="off", proxy_headers=False
    )
    server = uvicorn.Server(settings)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield bound.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def is_closed(connection):
    """Whether the other side closes it in time."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(1000):
            pass
    return True


REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"


@pytest.fixture
def short_times(monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)


def test_headers_must_come_in_time_whatever_is_sent_of_them(short_times):
    with listening() as port:
        silent, half, trickling, later = (connect(port) for _ in range(4))
        start = time.monotonic()
        half.sendall(REQUEST[:30])
        later.sendall(REQUEST + b"{}")
        assert later.recv(1000).startswith(b"HTTP/1.1 200")
        later.sendall(REQUEST[:30])  # the second one is never finished
        with contextlib.suppress(ConnectionError):
            for byte in REQUEST * 5:
                trickling.sendall(bytes([byte]))
                time.sleep(0.02)
                if time.monotonic() - start > 2:
                    break
        assert is_closed(silent) and is_closed(half) and is_closed(trickling)
        assert is_closed(later)
        assert time.monotonic() - start < 5
        for connection in (silent, half, trickling, later):
            connection.close()


def test_a_request_that_is_slow_in_its_body_is_not_cut_by_the_time_for_headers(short_times):
    with listening() as port, connect(port) as slow:
        slow.sendall(REQUEST)
        time.sleep(0.8)
        slow.sendall(b"{}")
        assert slow.recv(100).startswith(b"HTTP/1.1 200")


def test_an_answer_that_nobody_takes_is_given_up(monkeypatch):
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 0.3)
    with listening() as port, connect(port) as slow:
        slow.sendall(REQUEST)
        assert is_closed(slow)


def test_beyond_the_cap_the_client_with_the_most_idle_connections_loses_one():
    with listening(limit=8) as port:
        idle = [connect(port) for _ in range(8)]
        with connect(port) as busy:
            busy.sendall(REQUEST)  # and no body yet
            time.sleep(0.2)
            more = [connect(port) for _ in range(20)]
            time.sleep(0.2)
            with connect(port) as late:
                late.sendall(REQUEST + b"{}")
                assert late.recv(100).startswith(b"HTTP/1.1 200")
            busy.sendall(b"{}")
            assert busy.recv(100).startswith(b"HTTP/1.1 200")
        assert all(is_closed(connection) for connection in idle)
        for connection in idle + more:
            connection.close()


def test_more_connections_than_open_files_are_not_promised():
    assert protocol(500).most == 500
    assert 0 < protocol(10**5).most <= 10**5


# ---------------------------------------------------------------- the application


def test_who_asks_is_the_connection_unless_a_named_proxy_says_otherwise(serving):
    def statuses(client, n=6):
        return [
            client.get("/healthz", headers={"x-forwarded-for": f"10.0.0.{i}"}).status_code
            for i in range(n)
        ]

    assert statuses(serving(rate=0.001, burst=3.0)) == [200] * 3 + [429] * 3
    # The test's client has no address; a server in front has.
    behind = serving(rate=0.001, burst=3.0, proxy="127.0.0.0/8, ::1")
    app = behind.app

    async def from_loopback(scope, receive, send):
        await app({**scope, "client": ("127.0.0.1", 1)}, receive, send)

    behind._transport.app = from_loopback
    assert statuses(behind) == [200] * 6
    with pytest.raises(QAgentError, match=r"proxy 'nginx' is no address"):
        ServeConfig(proxy="127.0.0.1,nginx").check()


def test_an_ipv6_client_has_one_rate_for_its_network():
    from qagent_mlx.serve.middleware import _network

    assert _network("2001:db8::1") == _network("2001:db8::ffff") != _network("2001:db8:0:1::1")
    assert _network("127.0.0.1") == "127.0.0.1" and _network("fe80::1%eth0") == "fe80::/64"


def test_a_client_that_hangs_up_in_its_body_is_no_error_of_the_server(serving, caplog):
    caplog.set_level(logging.INFO, "qagent.serve")
    app = serving().app
    with listening(app) as port:
        for sent in (b"", b'{"user'):
            with connect(port) as connection:
                head = "POST /recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: "
                head += "application/json\r\nContent-Length: 100\r\n\r\n"
                connection.sendall(head.encode() + sent)
                time.sleep(0.1)
        time.sleep(0.3)
    lines = [r for r in caplog.records if "route=/recommend" in r.getMessage()]
    assert len(lines) == 2 and all("status=400" in r.getMessage() for r in lines)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_an_id_is_the_same_however_it_is_written(serving):
    client = serving()
    first = client.post("/recommend", json={"user_id": "u01"}).json()
    assert client.post("/recommend", json={"user_id": " u01\t"}).json()["cached"]
    event = {"user_id": " u01 ", "type": "search", "query": "borealis desk lamp"}
    assert client.post("/events", json=event).json()["accepted"] == 1
    after = client.post("/recommend", json={"user_id": "\u200bu01"}).json()
    assert not after["cached"] and after["as_of"] > first["as_of"] and after["user_id"] == "u01"
    views = [client.get(f"/users/{name}/memory").json() for name in ("u01", "%20u01%09")]
    assert views[0] == views[1]
    held = client.get("/users/%20u01/export").json()
    assert held["user_id"] == "u01" and len(held["events"]) == views[0]["events"] > 1
    # A number with a point is not the number without it: what is posted is meant as it is.
    event = {"user_id": "1289.0", "type": "search", "query": "lamp"}
    assert client.post("/events", json=event).json()["accepted"] == 1
    assert client.get("/users/1289.0/memory").json()["events"] == 1
    assert client.delete("/users/%20u01%20").json()["events"] == len(held["events"])
    assert client.get("/users/u01/memory").json()["events"] == 0
    for body in ({"user_id": " "}, {"user_id": "\u200b"}):
        assert client.post("/recommend", json=body).status_code == 422
    assert client.get("/users/%20/memory").status_code == 422


def test_an_error_says_nothing_of_where_the_servers_files_are():
    from pathlib import Path

    from qagent_mlx.serve.error_replies import without_paths

    shop = Path("/srv/my shops/tea")
    for text, public in (
        ("cannot write /srv/my shops/tea/journal: full", "cannot write journal: full"),
        ("the weights in /srv/my shops/tea/policies/b/1 are", "the weights in policies/b/1 are"),
        ("no /home/ann/models/q/config.json; correct it", "no config.json; correct it"),
        ("and/or http://127.0.0.1:9200/a/b", "and/or http://127.0.0.1:9200/a/b"),
    ):
        assert without_paths(text, shop) == public


def test_no_part_of_a_reply_waits_for_an_acknowledgement(monkeypatch):
    made = []
    start = connections.GuardedConnection._start_timer

    def noted(self):
        connected = self.transport.get_extra_info("socket")
        made.append(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        start(self)

    monkeypatch.setattr(connections.GuardedConnection, "_start_timer", noted)
    with listening() as port, connect(port) as client:
        client.sendall(REQUEST + b"ab")
        assert b"200 OK" in client.recv(1000)
    assert made and all(made)
