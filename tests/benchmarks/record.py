"""Records a session of `qagent demo` in a real terminal as an SVG picture, for README.

    python tests/benchmarks/record.py notebooks/session.svg --shop shop --user u0550

Types the commands below into the demo in tmux, 80 columns wide, waits for each answer, and draws
what the terminal then holds. The shop is not changed: the demo plays on a copy of it.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMANDS = ("user {user}", "recommend", "click 1", "buy 1", "recommend")
WIDTH = 80


class Terminal:
    """A program in tmux."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._tmux = ["tmux", "-S", str(folder / "socket"), "-f", "/dev/null"]
        environment = {**os.environ, "TERM": "screen-256color", "COLORTERM": "", "LANG": "C.UTF-8"}
        environment.pop("NO_COLOR", None)
        subprocess.run(
            [*self._tmux, "new-session", "-d", "-x", str(WIDTH), "-y", "200", shlex.join(command)],
            check=True,
            env=environment,
        )

    def __call__(self, *words: str) -> str:
        done = subprocess.run([*self._tmux, *words], check=True, capture_output=True, text=True)
        return done.stdout

    def screen(self) -> str:
        """What it shows, with its colours."""
        return self("capture-pane", "-e", "-p", "-N").rstrip()

    def wait(self, prompt: str, count: int, seconds: float = 600.0) -> str:
        """The screen as soon as a prompt has come so often."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            text = self.screen()
            plain = Text.from_ansi(text).plain
            if len(re.findall(prompt, plain, re.MULTILINE)) >= count:
                return text
            time.sleep(0.2)
        raise SystemExit(f"the demo did not answer in {seconds:.0f} s; it shows:\n{plain}")


def record(shop: Path, policy: str, user: str) -> list[str]:
    """The session's lines with their colours, from its first prompt on."""
    command = [sys.executable, "-m", "qagent_mlx", "demo", "--shop", str(shop), "--policy", policy]
    with tempfile.TemporaryDirectory() as folder:
        terminal = Terminal(command, Path(folder))
        prompt = r"^[\w-]+> "
        try:
            terminal.wait(prompt + r"?\s*$", 1)
            for number, line in enumerate(COMMANDS, 2):
                terminal("send-keys", "-l", line.format(user=user))
                terminal("send-keys", "Enter")
                text = terminal.wait(prompt[:-1], number)
            terminal("send-keys", "C-d")
        finally:
            subprocess.run([*terminal._tmux, "kill-server"], check=False, capture_output=True)
    lines = text.splitlines()
    first = next(i for i, x in enumerate(lines) if re.match(prompt, Text.from_ansi(x).plain))
    return lines[first:-1]  # the last line is a prompt that waits


def main() -> None:
    """Record, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shop", type=Path, default=Path("shop"))
    parser.add_argument("--policy", default="grpo")
    parser.add_argument("--user", default="u0550")
    given = parser.parse_args()
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        console.print(
            Text.from_ansi("\n".join(record(given.shop, given.policy, given.user))), soft_wrap=True
        )
        picture = console.export_svg(title=f"qagent demo --shop {given.shop.name}")
    # The fonts that rich names are fetched from elsewhere; a picture in a repository needs none.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    given.out.write_text(picture.replace("Fira Code, monospace", "monospace"), encoding="utf-8")


if __name__ == "__main__":
    main()
