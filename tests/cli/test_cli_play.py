from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time

import pytest
from qagent_cli.play import COMMANDS, HELP, completions, play

from qagent_mlx.demo.playground import PlaygroundSession
from qagent_mlx.policy.registry import SAMPLE, open_policy


@pytest.fixture
def played(own_shop, monkeypatch, capsys):
    """Plays a session from piped lines; returns what was printed."""
    # The shipped base: it writes whole chains, which random weights do not.
    session = PlaygroundSession(own_shop, open_policy(None, SAMPLE), "u01", group=2, name=SAMPLE)

    def run(*lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        monkeypatch.setenv("COLUMNS", "80")
        play(session)
        return capsys.readouterr().out

    run.session = session
    return run


def test_a_terminal_obeys_nothing_of_what_was_piped_in(played):
    text = played("search \x1b[31mred\x07", "user \x9b2Jx", "quit")
    assert not any(c in text for c in "\x1b\x07\x9b")


def test_a_piped_session_reads_like_a_transcript_in_80_columns(played):
    text = played(
        "users usb",
        "recommend",
        "why",
        "click 1",
        "click 1",
        "buy 2",
        "memory",
        "new",
        "recommend",
        "search usb cable",
        "as-of 2026-03-10",
        "memory",
        "as-of now",
        "compare sample",
        "quit",
        "never reached",
    )
    assert "u01> recommend" in text
    assert "fetch memory" in text
    assert "guest-1: a new user" in text
    assert "guest-1 @ 2026-03-10 00:00> memory" in text
    assert "clicked " in text and "bought " in text
    assert "never reached" not in text
    assert "\x1b" not in text
    long = [line for line in text.splitlines() if len(line) > 80]
    assert not long
    assert (
        played.session.shop.connection.execute(
            "SELECT count(*) FROM events WHERE user_id = 'u01' AND type = 'purchase' "
            "AND ts > TIMESTAMP '2026-03-31'"
        ).fetchone()[0]
        <= 1
    )


def test_what_cannot_be_done_is_one_line_and_the_session_goes_on(played):
    text = played(
        "",
        "dance",
        "user",
        "click 1",
        "recommend",
        "buy 1",
        "click x",
        "click 99",
        "search ?!",
        "as-of never",
        "as-of",
        "compare",
        "compare nobody",
        "train x",
        "help",
    )
    for part in (
        "unknown command 'dance'",
        "which user?",
        "nothing is on the screen",
        "is a query",
        "choose a number",
        "nothing to search for",
        "write it as 2026-03-01",
        "which moment?",
        "with which policy?",
        "no policy nobody",
        "how many steps?",
    ):
        assert part in " ".join(text.split()), part
    assert text.count("users [TEXT]") == 2


def test_training_shows_the_same_user_before_and_after(played):
    text = played("train 1", "memory")
    assert "1 steps in" in text and "before: sample" in text and "after: session" in text


def test_tab_offers_what_fits(played):
    session = played.session
    assert completions(session, "re", "re") == ["recommend "]
    assert completions(session, "", "") == [f"{c} " for c in COMMANDS]
    assert completions(session, "user u0", "u0") == [u for u in session.users if u[:2] == "u0"]
    assert completions(session, "compare s", "s") == ["sample"]
    assert completions(session, "as-of ", "") == ["now"]
    session.search("usb cable")
    assert completions(session, "buy ", "") == [str(n + 1) for n in range(len(session.screen))]
    assert completions(session, "search us", "us") == []


def test_the_help_names_every_command():
    for command in COMMANDS:
        assert command in HELP


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_in_a_terminal_tab_completes_and_the_arrow_brings_back_the_last_line(own_shop, tmp_path):
    path = own_shop.path
    own_shop.close()
    tmux = ["tmux", "-S", str(tmp_path / "socket")]
    command = f"{sys.executable} -m qagent_mlx demo --shop {path} --policy sample"
    environment = {
        **os.environ,
        "TERM": "screen",
        "OPENBLAS_NUM_THREADS": "1",
        "TMPDIR": str(tmp_path),
    }
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", "80", "-y", "50", command], check=True, env=environment
    )

    def screen():
        done = subprocess.run(
            [*tmux, "capture-pane", "-p", "-S", "-200"], capture_output=True, text=True, check=True
        )
        return done.stdout

    def wait_for(text, count=1):
        until = time.monotonic() + 90
        while (shown := screen()).count(text) < count:
            assert time.monotonic() < until, shown
            time.sleep(0.2)
        return shown

    def send(*keys):
        subprocess.run([*tmux, "send-keys", *keys], check=True)

    try:
        wait_for(">\n")  # the prompt; its blank is not captured
        send("mem", "Tab", "Enter")
        wait_for("profile of")
        send("Up", "Enter")
        wait_for("profile of", 2)
        send("rec", "Tab", "Enter")
        text = wait_for("this was the first")
        assert "fetch memory" in text
        send("quit", "Enter")
        until = time.monotonic() + 30
        while (
            subprocess.run([*tmux, "has-session"], check=False, capture_output=True).returncode == 0
        ):
            assert time.monotonic() < until, screen()
            time.sleep(0.2)
        assert not list(tmp_path.glob("qagent-*"))  # the copy of the shop is gone
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)
