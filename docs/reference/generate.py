"""Write ``docs/reference/settings.md``: all settings, from their annotations (`make reference`)."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
from qagent_cli.main import cli
from qagent_cli.options import SettingOption

from qagent_mlx.utils.settings import Setting, describe

# (heading, where the settings are given, their class)
SECTIONS = (
    ("Shop", "`shop.json` in the shop's folder", "shop.config.ShopConfig"),
    ("Ingest", "flags of `qagent ingest products` and `events`", "ingest.options.ReadOptions"),
    ("Serving", "flags of `qagent serve`", "serve.config.ServeConfig"),
    (
        "Pretraining",
        "flags of `qagent pretrain`, `[train]` of a file",
        "train.config.PretrainConfig",
    ),
    ("SFT", "flags of `qagent train sft`, `[train]` of a file", "train.config.SftConfig"),
    ("GRPO", "flags of `qagent train grpo`, `[train]` of a file", "train.grpo_config.GrpoConfig"),
    ("LoRA", "flags of `qagent train`, `[train.lora]` of a file", "policy.lora.LoraConfig"),
    ("Alarms", "`--alarm`, `[alarms]` of a file", "train.config.AlarmConfig"),
    ("Distillation", "flags of `qagent distil`", "train.config.DistillConfig"),
    (
        "Agent",
        "`--writes` of `qagent pretrain`, `[agent]` of a file",
        "protocol.config.AgentConfig",
    ),
    ("Split of cases", "flags of training, `[split]` of a file", "environment.config.SplitConfig"),
    ("Evaluation", "flags of `qagent evaluate`", "evaluate.config.EvaluationConfig"),
    ("Simulated A/B test", "flags of `qagent abtest`", "evaluate.config.AbConfig"),
    ("Reproduction", "flags of `qagent reproduce`", "reproduce.config.ReproduceConfig"),
    ("Demo", "flags of `qagent demo`", "demo.config.DemoConfig"),
    ("Recommending to many users", "flags of `qagent recommend`", "serve.config.BulkConfig"),
)

_HEAD = """# Settings

Generated from the settings' annotations by `make reference`; do not edit. Settings that have no
flag are given in Python or in a file. The ranges hold wherever a value comes from.
"""
_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def reference() -> str:
    """The page, as Markdown."""
    flags = _flags()
    lines = [_HEAD]
    for heading, where, path in SECTIONS:
        settings = settings_class(path)
        lines += [
            f"## {heading}\n",
            f"Given by: {where}. In Python: `qagent_mlx.{path}`.\n",
            "| setting | values | default | what it is | flag |",
            "|---|---|---|---|---|",
            *(
                _row(setting, flags.get((settings, setting.name), ""))
                for setting in describe(settings)
            ),
            "",
        ]
    return "\n".join(lines)


def settings_class(path: str) -> type:
    """A settings class by its path inside the package."""
    module, _, name = path.rpartition(".")
    settings: type = getattr(import_module(f"qagent_mlx.{module}"), name)
    return settings


def commands(group: click.Group = cli) -> Iterator[click.Command]:
    """All commands, with those of groups."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield command
        if isinstance(command, click.Group):
            yield from commands(command)


def _row(setting: Setting, flag: str) -> str:
    default = "" if setting.default in (None, "", ()) else f"`{setting.default}`"
    cells = (f"`{setting.name}`", _values(setting), default, setting.description, flag)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(setting: Setting) -> str:
    """The type, range and unit, or all choices."""
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    kind = setting.kind
    inner, *rest = typing.get_args(kind) or (kind,)
    if rest == [...]:
        return f"list of {_NAMES.get(inner, 'value')}s"
    text = _NAMES.get(kind, "table" if typing.get_origin(kind) is dict else "value")
    bounds = ", ".join(f"{_SIGNS[sign]} {limit:g}" for sign, limit in setting.bounds.items())
    return " ".join(filter(None, (text, bounds, f"({setting.unit})" if setting.unit else "")))


def _flags() -> dict[tuple[type | None, str], str]:
    """The flag of each (class, setting) that has one, in whichever command."""
    return {
        (option.settings, option.setting): f"`{max(option.opts, key=len)}`"
        for command in commands()
        for option in command.params
        if isinstance(option, SettingOption)
    }


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(reference(), encoding="utf-8")
