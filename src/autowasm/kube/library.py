"""The parts of kubernetes_asyncio that we use, without its 900 modules of models.

Importing any of them the usual way runs `kubernetes_asyncio/__init__.py`, which imports everything: 36 MiB and half a second,
for classes that nobody here makes one of (ADR 0002, ADR 0024). Here the packages stand in `sys.modules` unexecuted while
their parts are imported, and are taken out again: whoever imports the library elsewhere gets all of it.
Not a copy or a change of the library. Invariant: after `load`, `sys.modules` names nothing of it that was not there before.
"""

import functools
import importlib
import importlib.util
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

_NAME: Final = "kubernetes_asyncio"
_PACKAGES: Final = (_NAME, f"{_NAME}.client", f"{_NAME}.config")
_LOADING: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class Library:
    """What we use of it."""

    kube_config: Any
    """Reads kubeconfig and runs exec plugins."""
    incluster_config: Any
    """Reads a service account."""
    rest: Any
    """Makes TLS and pools of connections of a configuration."""
    new_configuration: Any
    """Its `Configuration`, called with nothing."""


def load() -> Library:
    """Blocks for some 0.1 s the first time: call it in a thread first."""
    with _LOADING:
        return _load()


@functools.cache
def _load() -> Library:
    try:
        Path.home()
    except RuntimeError:
        # A user by number without $HOME: the library asks for a home as it is imported, even where it needs none.
        os.environ["HOME"] = "/"
    before = {name: module for name, module in sys.modules.items() if _is_of_it(name)}
    for name in before:
        del sys.modules[name]
    try:
        for name in _PACKAGES:
            sys.modules[name] = _unexecuted(name)
        client = sys.modules[f"{_NAME}.client"]
        configuration = importlib.import_module(f"{_NAME}.client.configuration").Configuration
        client.__dict__.update(Configuration=configuration, ApiClient=object)
        return Library(
            kube_config=importlib.import_module(f"{_NAME}.config.kube_config"),
            incluster_config=importlib.import_module(f"{_NAME}.config.incluster_config"),
            rest=importlib.import_module(f"{_NAME}.client.rest"),
            new_configuration=configuration,
        )
    finally:
        for name in [name for name in sys.modules if _is_of_it(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _unexecuted(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"{name} is not installed", name=name)
    return importlib.util.module_from_spec(spec)


def _is_of_it(name: str) -> bool:
    return name == _NAME or name.startswith(f"{_NAME}.")
