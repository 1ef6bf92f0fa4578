"""How a peer's script tells the benchmark of its steps; imported by the scripts beside it."""

import json
import resource
import sys
import time

work = json.loads(sys.argv[1])  # the settings of the workload
out, sys.stdout = sys.stdout, sys.stderr


def say(row):
    """Print one line of JSON for the process that started this one."""
    out.write(json.dumps(row) + "\n")
    out.flush()


class Clock:
    """Times a step from `start` to `report`; ``rollout`` is the part that sampled the chains."""

    def start(self):
        """Begin a step."""
        self.began, self.cpu, self.rollout = time.perf_counter(), time.process_time(), 0.0

    def report(self):
        """Say how long the step took, and how much memory the process has held at most."""
        say(
            {
                "rollout": self.rollout,
                "update": time.perf_counter() - self.began - self.rollout,
                "cpu": time.process_time() - self.cpu,
                "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )


def reward(completions):
    """Differs between the chains of a group."""
    return [float(sum(map(ord, text)) % 97) / 97 for text in completions]
