"""Promote and roll back under a server with clients: requests that fail, and the time to take up.

python tests/benchmarks/promotions.py shop --versions sft@1 grpo@1 sft@2 --rounds 6
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter

from qagent_mlx.policy.promotions import promoted
from qagent_mlx.policy.versions import promote, rollback
from qagent_mlx.shop.shop import Shop


class Server:
    """A server process of a shop."""

    def __init__(self, shop: str, workers: int) -> None:
        command = [sys.executable, "-m", "qagent_mlx", "serve", "--shop", shop, "--port", "0"]
        command += ["--workers", str(workers), "--cache", "0", "--rate", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if address := re.search(r"http://\S+", line):
                self.address = address[0]
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def ask(self, path: str, body: dict | None = None) -> dict:
        """The JSON of an answer; raises for any other than a 200."""
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(
            self.address + path, data, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


def main() -> None:
    """Change the policy under load, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shop")
    parser.add_argument("--versions", nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    server = Server(given.shop, given.workers)
    stop, seconds, failures, answered = threading.Event(), [], [], Counter()

    def client(number: int) -> None:
        while not stop.is_set():
            number += given.clients
            start = time.monotonic()
            try:
                reply = server.ask("/recommend", {"user": f"u{number % 500:04}", "k": 5})
            except OSError as error:
                failures.append(error)
                continue
            seconds.append(time.monotonic() - start)
            answered[f"{reply['policy']}@{reply['version']}"] += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(given.clients)]
    for thread in threads:
        thread.start()
    waits = []
    with Shop.open(given.shop) as shop:
        for number in range(given.rounds):
            for target in [*given.versions, *("" for _ in given.versions[1:])]:
                if target == promoted(shop):
                    continue
                change = promote(shop, target) if target else rollback(shop)
                wanted, start = change.policy, time.monotonic()
                while True:
                    health = server.ask("/healthz")
                    if f"{health['policy']}@{health['version']}" == wanted:
                        break
                    time.sleep(0.05)
                waits.append(time.monotonic() - start)
                time.sleep(2)
            given.versions = given.versions[1:] + given.versions[:1]
            print(f"round {number + 1}: {answered.total()} answers", file=sys.stderr)
    stop.set()
    for thread in threads:
        thread.join()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)
    seconds.sort()
    print(
        f"{len(waits)} changes, taken up after {max(waits):.1f} s at most; {len(seconds)} requests, "
        f"{len(failures)} failed; median {1000 * seconds[len(seconds) // 2]:.0f} ms, "
        f"p95 {1000 * seconds[int(0.95 * len(seconds))]:.0f} ms; answers {dict(answered)}"
    )


if __name__ == "__main__":
    main()
