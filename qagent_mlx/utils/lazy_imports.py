"""Defer heavy imports of mlx-lm, and of numpy by scipy, until something of them is used.

``import mlx_lm`` imports transformers and the model hub's client, which take longer than the
rest of ``qagent recommend``. A shop's own small policy needs neither: only mlx-lm's model and
cache modules, which import nothing but MLX. Python runs a package's ``__init__`` before any of
its submodules, so `defer_imports` registers packages that know their path alone; the first
attribute that they do not have runs the ``__init__`` as Python would have.

``import scipy.sparse`` takes every public name of numpy, among them packages that numpy itself
imports only when they are used (a compiler of Fortran, helpers of tests): a tenth of the time in
which a command starts. `utils.sparse` registers them in the same way before.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from threading import RLock
from types import ModuleType
from typing import Any

# Package -> functions that its __init__ defines under the name of a submodule: it has to run
# once that submodule is imported, or the name would stay the submodule's.
DEFERRED = {
    "mlx_lm": frozenset({"batch_generate", "convert", "generate", "load", "stream_generate"}),
    "mlx_lm.tuner": frozenset({"evaluate", "linear_to_lora_layers", "train"}),
}
NUMPY_PACKAGES = ("f2py", "polynomial", "testing")


class DeferredPackage(ModuleType):
    """A package whose ``__init__`` has not run yet; afterwards an ordinary module.

    With ``functions`` (see `DEFERRED`) its submodules may be imported before; with None it runs
    first, as whoever asks for the package's path imports one of them.
    """

    def __init__(self, spec: ModuleSpec, functions: frozenset[str] | None) -> None:
        super().__init__(spec.name)
        self.__dict__.update(
            __spec__=spec,
            __loader__=spec.loader,
            __package__=spec.name,
            __file__=spec.origin,
            _functions=functions or frozenset(),
            _lock=RLock(),
            _running=False,
        )
        if functions is not None:
            self.__dict__["__path__"] = spec.submodule_search_locations

    def _run(self) -> None:
        """Run the ``__init__``, once; one that fails is run again by the next access."""
        values = self.__dict__
        with values["_lock"]:
            if values["_running"] or type(self) is not DeferredPackage:
                return
            values["_running"] = True
            values["__path__"] = values["__spec__"].submodule_search_locations
            try:
                values["__loader__"].exec_module(self)
            finally:
                values["_running"] = False
            self.__class__ = ModuleType  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        # Python's import machinery looks for special attributes that need no __init__.
        if not name.startswith("__") or name in ("__all__", "__path__", "__version__"):
            self._run()
            if name in self.__dict__:
                return self.__dict__[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, ModuleType) and name in self.__dict__["_functions"]:
            self._run()

    def __dir__(self) -> list[str]:
        self._run()
        return dir(self)


def defer_imports() -> None:
    """Register the packages of `DEFERRED` that are installed and not imported yet."""
    if "mlx_lm" in sys.modules:
        return
    # mlx_lm's __init__ sets it too: transformers would complain that PyTorch is missing.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for name, functions in DEFERRED.items():
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            return
        package = DeferredPackage(spec, functions)
        sys.modules[name] = package
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, package)


def defer_of_numpy() -> None:
    """Register the packages of `NUMPY_PACKAGES` that are not imported yet; numpy is."""
    for last in NUMPY_PACKAGES:
        name = f"numpy.{last}"
        if name not in sys.modules and (spec := find_spec(name)):
            sys.modules[name] = package = DeferredPackage(spec, None)
            setattr(sys.modules["numpy"], last, package)
