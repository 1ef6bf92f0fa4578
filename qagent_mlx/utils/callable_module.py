"""Modules that can be called, for public functions that are called as a module is.

``qagent_mlx.ingest`` is a package and, as ``qagent_mlx.ingest(shop, files, kind)``, a function.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(module: str, function: str) -> None:
    """Let calls of a module call a function, which is imported when it is first called.

    Args:
        module: The module's name.
        function: The function's place, ``package.module:name``.
    """
    source, _, name = function.partition(":")

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **keywords: Any) -> Any:
            return getattr(import_module(source), name)(*args, **keywords)

    sys.modules[module].__class__ = CallableModule
