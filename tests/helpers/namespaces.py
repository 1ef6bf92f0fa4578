"""Machines with a network of their own each: Linux's network namespaces, joined to this one by a cable.

Needs the rights to make them (root) and the program ``ip``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CLONE_NEWNET = 0x40000000


def _ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)


@dataclass(frozen=True)
class Machine:
    """A network of its own.

    Attributes:
        name: Of the namespace.
        cable: Its end of its only connection, which leads to whoever made it.
        gateway: The address of this end.
        address: The machine's own.
    """

    name: str
    cable: str
    gateway: str
    address: str

    def command(self, words: Sequence[str]) -> list[str]:
        """A command that runs on the machine."""
        return ["ip", "netns", "exec", self.name, *words]

    def enter(self) -> None:
        """Let this thread, and those it starts from now on, be on the machine."""
        with open(f"/var/run/netns/{self.name}") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter {self.name}")

    def cut(self) -> None:
        """Pull the plug: nothing gets through, and nobody is told."""
        # At the machine's end: this end would tell whoever sends that it is down.
        _ip("-n", self.name, "link", "set", self.cable, "down")

    def mend(self) -> None:
        """Put the plug in again."""
        _ip("-n", self.name, "link", "set", self.cable, "up")


def seen_from(address: str, machine: Machine | None) -> str:
    """The address of a lake whose PostgreSQL is here, as a machine has to write it."""
    return re.sub(r"host=\S+", f"host={machine.gateway}", address) if machine else address


def can_make() -> bool:
    """Whether networks can be made here."""
    if sys.platform != "linux" or not shutil.which("ip"):
        return False
    name = f"qa{os.getpid()}t"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """So many machines; each reaches whoever made it, and no other machine."""
    prefix = f"qa{os.getpid() % 100_000}"
    made = []
    try:
        for number in range(count):
            net = f"10.{64 + os.getpid() % 190}.{number}"
            name = f"{prefix}n{number}"
            machine = Machine(name, f"{prefix}c{number}", f"{net}.1", f"{net}.2")
            _ip("netns", "add", name)
            made.append(machine)
            end = f"{prefix}e{number}"
            _ip("link", "add", end, "type", "veth", "peer", "name", machine.cable, "netns", name)
            _ip("addr", "add", f"{machine.gateway}/30", "dev", end)
            _ip("link", "set", end, "up")
            _ip("-n", name, "addr", "add", f"{machine.address}/30", "dev", machine.cable)
            _ip("-n", name, "link", "set", "lo", "up")
            machine.mend()
        yield made
    finally:
        for machine in made:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", machine.name)  # its cable goes with it
