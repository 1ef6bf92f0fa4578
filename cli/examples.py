"""Examples for the help of every command; the tests check that each one can be read."""

from __future__ import annotations

import click

# the words of a command -> its examples
EXAMPLES = {
    "demo": (
        "qagent demo",
        "qagent demo --session",
        "qagent demo --shop shop --policy sft",
        "printf 'recommend\\nwhy\\n' | qagent demo --shop shop",
    ),
    "init": ("qagent init --sample --shop shop", "qagent init --shop mine"),
    "ingest": (
        "qagent ingest products products.csv --map product_id=sku",
        "qagent ingest events events.jsonl.gz",
    ),
    "ingest products": (
        "qagent ingest products products.csv --map product_id=sku --map title=name",
        "qagent ingest products catalog.parquet",
    ),
    "ingest events": (
        "qagent ingest events events.csv.gz",
        "qagent ingest events clicks.csv --type click --map user_id=visitor",
    ),
    "ingest retry": ("qagent ingest retry",),
    "ingest derive": ("qagent ingest derive", "qagent ingest derive --from titles"),
    "index": ("qagent index", "qagent index --update"),
    "memory": ("qagent memory u0001", "qagent memory forget u0001"),
    "memory show": (
        "qagent memory show u0001 --as-of 2026-03-01T12:00",
        "qagent memory show u0001 --html user.html",
    ),
    "memory export": ("qagent memory export u0001 --json > user.json",),
    "memory forget": ("qagent memory forget u0001 --yes",),
    "memory split": ("qagent memory split parts --parts 8",),
    "memory build": ("qagent memory build parts", "mlx.launch -n 2 qagent memory build parts"),
    "search": (
        'qagent search "water filter" -k 3',
        'qagent search "usb cable" --in-stock --max-price 10 --explain',
    ),
    "models": ("qagent models list", "qagent models show sample"),
    "models list": ("qagent models list --json",),
    "models show": ("qagent models show grpo",),
    "models pull": ("qagent models pull path/to/model.gguf",),
    "models fuse": ("qagent models fuse grpo grpo-model",),
    "pretrain": ("qagent pretrain --name base --steps 200",),
    "train": ("qagent train sft --policy base", "qagent train grpo --policy sft"),
    "train sft": ("qagent train sft --policy base --steps 60", "qagent train sft --resume"),
    "train grpo": (
        "qagent train grpo --policy sft --steps 50 --seed 1",
        "qagent train grpo --policy sft --eval-every 10 --stop-after 3",
        "qagent train grpo --policy sft --name typed --preset typed",
        "qagent train grpo --resume",
    ),
    "distil": ("qagent distil --teacher smol-grpo --name small",),
    "recommend": (
        "qagent recommend u0001 u0002 -k 3",
        "qagent recommend u0001 --chains --json",
        "qagent recommend --all --out all.parquet",
        "qagent recommend --users ids.txt --out some.parquet --policy sft",
        "qagent recommend --all --out all.parquet --workers 2",
        "qagent recommend --all --out all-1.parquet --shard 1/2",
        "mlx.launch -n 2 qagent recommend --all --out all.parquet",
    ),
    "serve": (
        "qagent serve --shop shop --workers 2",
        "curl -s localhost:8800/recommend -H 'content-type: application/json' \\",
        '  -d \'{"user": "u0001", "k": 5, "deadline_ms": 300}\'',
        "curl -s localhost:8800/events -H 'content-type: application/json' \\",
        '  -d \'{"user_id": "u0001", "type": "search", "query": "usb cable"}\'',
        "QAGENT_TOKEN=$(openssl rand -hex 24) qagent serve --host 0.0.0.0",
    ),
    "evaluate": (
        "qagent evaluate --policy sft --policy grpo --baselines",
        "qagent evaluate --policy grpo --no-search --compare grpo:repeat-last",
    ),
    "abtest": (
        "qagent abtest --control repeat-last --treatment grpo",
        "qagent abtest --control typed --treatment grpo -k 1",
    ),
    "reproduce": ("qagent reproduce sample --out reproduced --quick",),
    "runs": ("qagent runs list", "qagent runs show"),
    "runs list": ("qagent runs list --json",),
    "runs show": ("qagent runs show grpo --html run.html",),
    "runs rollouts": ("qagent runs rollouts grpo --worst -n 3",),
    "runs diff": ("qagent runs diff grpo grpo-2",),
    "bench": ("qagent bench --model tiny --steps 3",),
    "completion": (
        'eval "$(qagent completion bash)"      # in ~/.bashrc; bash 4.4 or newer',
        'eval "$(qagent completion zsh)"       # in ~/.zshrc, after compinit',
        "qagent completion fish > ~/.config/fish/completions/qagent.fish",
    ),
    "doctor": ("qagent doctor", "qagent doctor --json"),
}


def with_examples(name: str, command: click.Command) -> click.Command:
    """The command with its examples, and those of its subcommands, at the end of the help."""
    if name in EXAMPLES and command.epilog is None:
        lines = "\n".join(f"  {line}" for line in EXAMPLES[name])
        command.epilog = f"\b\nExamples:\n{lines}"
    if isinstance(command, click.Group):
        for sub, one in command.commands.items():
            with_examples(f"{name} {sub}", one)
    return command
