"""Feeds broken and hostile inputs to what reads them.

    python tests/benchmarks/fuzz.py --inputs 1000000 [--only protocol] [--seed 0]
    python tests/benchmarks/fuzz.py --inputs 100000 --only protocol --guided

The inputs are shared out among the targets of tests/helpers/targets.py by what they cost. Each
target runs in a process of its own, which is watched: an exception, a dead process, an input
that computes for over 20 seconds (or waits for ten minutes), or memory beyond 3 GB more is a
fault; its number is printed, and
``--only TARGET --from NUMBER --inputs 1`` repeats it. tests/reliability does some hundred of each.

With ``--guided`` (needs ``pip install atheris``; Linux) libFuzzer changes the inputs so that they
reach code which none before has reached, and a faulty input is printed as bytes in hexadecimal.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "helpers"), str(Path(__file__).parent.parent)]

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

from drawn import Drawn
from fuzzing import shop_with_run
from targets import TARGETS, Place

HANG = 20.0  # seconds of processor time, so that a busy machine hangs nothing
WAITED = 600.0  # seconds
MEMORY = 3 << 30  # bytes more than at the start
FAULTS = 5  # of a target, after which it ends

context = multiprocessing.get_context("spawn")


def work(name, shop, scratch, seed, first, inputs, at, out):
    """In a process of its own: one input after the other."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    target, each, _ = TARGETS[name]
    place = Place(Path(shop), Path(scratch))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in range(first, first + -(-inputs // each)):
        at.value = number
        try:
            target(random.Random(f"{seed}-{name}-{number}"), place)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            out.send((number, "".join(traceback.format_exception(error, limit=-6))))
            return
    out.send((first + -(-inputs // each), None))


def work_guided(name, shop, scratch, seed, first, inputs, at, out):
    """As `work`, with inputs that libFuzzer makes; it ends the process itself, with 0 when all went well."""
    import atheris

    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    target, each, _ = TARGETS[name]
    place = Place(Path(shop), Path(scratch))

    def one(data):
        at.value += 1
        try:
            target(Drawn(data), place)
        except BaseException as error:
            lines = "".join(traceback.format_exception(error, limit=-6))
            out.send((at.value, f"{lines}input: {data.hex()}"))
            os._exit(1)

    for module in [m for n, m in sys.modules.items() if n.startswith("qagent_mlx") and m]:
        for thing in list(vars(module).values()):
            own = getattr(thing, "__module__", None) == module.__name__
            if own and hasattr(thing, "__code__"):
                atheris.instrument_func(thing)
    options = [
        f"-runs={-(-inputs // each)}",
        f"-seed={seed + 1}",
        "-max_len=4096",
        "-verbosity=0",
        f"-rss_limit_mb={MEMORY >> 20}",
        f"-timeout={int(HANG)}",
        f"-artifact_prefix={scratch}/",
    ]
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


def used(process):
    """Seconds of processor time of a process."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(name, shop, folder, seed, first, inputs, worker):
    """All inputs of a target, over as many processes as it takes: (inputs, faults, MB, seconds)."""
    each = TARGETS[name][1]
    end, faults, began, peak = first + -(-inputs // each), [], time.monotonic(), 0
    at = context.Value("q", first)
    number = first
    while number < end and len(faults) < FAULTS:
        reader, writer = context.Pipe(duplex=False)
        scratch = tempfile.mkdtemp(dir=folder)
        process = context.Process(
            target=worker,
            args=(name, shop, scratch, seed, number, (end - number) * each, at, writer),
        )
        process.start()
        writer.close()
        last, since, spent = -1, time.monotonic(), 0.0
        while process.is_alive() and not reader.poll(0.5):
            if at.value != last:
                last, since, spent = at.value, time.monotonic(), used(process)
            # The first input sets things up.
            elif (
                used(process) - spent > HANG * (3 if last == number else 1)
                or time.monotonic() - since > WAITED
            ):
                process.kill()
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = max(peak, int(status.partition("VmHWM:")[2].split()[0]))
            except (OSError, IndexError):
                pass
            print(f"\r{name}: {at.value - first:,}/{end - first:,}", end="", file=sys.stderr)
        try:
            number, trouble = reader.recv()
        except EOFError:
            process.join()
            number, trouble = at.value, f"died or hung (exit code {process.exitcode})"
            if worker is work_guided and process.exitcode == 0:
                number, trouble = end, None
        process.join()
        if trouble is not None:
            faults.append((number, trouble))
            print(f"\n{name} input {number}: {trouble}", file=sys.stderr, flush=True)
            number += 1
    done = min(number, end) - first
    return done * each, len(faults), peak / 1024, time.monotonic() - began


def main() -> None:
    """Fuzz, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--guided", action="store_true")
    given = parser.parse_args()
    worker = work_guided if given.guided else work
    print("target | inputs | faults | peak MB | s", flush=True)
    total = faulty = 0
    with tempfile.TemporaryDirectory() as folder:
        shop = shop_with_run(Path(folder))
        for name, (_, _, share) in TARGETS.items():
            if given.only and given.only not in name:
                continue
            inputs = given.inputs if given.only else int(given.inputs * share)
            done, faults, peak, seconds = run(
                name, shop, folder, given.seed, given.first, inputs, worker
            )
            total, faulty = total + done, faulty + faults
            print(f"{name} | {done:,} | {faults} | {peak:,.0f} | {seconds:.0f}", flush=True)
    print(f"all | {total:,} | {faulty} | |")
    sys.exit(bool(faulty))


if __name__ == "__main__":
    main()
