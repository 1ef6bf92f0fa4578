"""Policies that are a few bytes, for tests of what a shop does with their folders."""

import os
from dataclasses import asdict

from qagent_mlx.models.fingerprint import ADAPTER, MODEL, fingerprint, fingerprint_files
from qagent_mlx.policy.policy import PolicyInfo
from qagent_mlx.policy.registry import lasting_name, resolve
from qagent_mlx.shop.policy_folders import reserve, save_version
from qagent_mlx.utils.atomic_files import write_json


def write_stand_in(folder, info):
    """Write a policy's files into a folder; what holds for weights holds for these bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    name = ADAPTER if info.base else MODEL
    (folder / name).write_bytes(os.urandom(32))
    if not info.base:
        write_json(folder / "config.json", {"model_type": "llama"})
    weights = fingerprint_files({name: folder / name})
    values = {**asdict(info), "weights": weights, "created": info.created}
    write_json(folder / "policy.json", values)


def stand_in(shop, name, parent="", stage="pretrain", created=""):
    """What describes a policy that was trained on another one of a shop."""
    base = lasting_name(shop, parent) if parent else ""
    print_of_base = fingerprint(resolve(shop, parent)) if parent else ""
    return PolicyInfo(
        name, base, print_of_base, trained=({"stage": stage, "run": name},), created=created
    )


def save_stand_in(shop, name, parent="", stage="", created=""):
    """Save the next version of a policy; returns ``NAME@N``."""
    info = stand_in(shop, name, parent, stage or ("sft" if parent else "pretrain"), created)
    reservation = reserve(shop.path / "policies", name, info.base, run=name)
    return save_version(
        shop.path / "policies", reservation, lambda folder: write_stand_in(folder, info)
    ).reference
