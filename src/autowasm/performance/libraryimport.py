"""Loads kubernetes_asyncio without its models.

A normal import runs `kubernetes_asyncio/__init__.py`, which imports 900 modules of models for classes that AutoWasm never
uses (ADR 2, ADR 24). `load` puts the packages into `sys.modules` unexecuted, imports the parts, and removes the packages
again, so an import elsewhere gets the whole library. Invariant: `load` leaves no new name of the library in `sys.modules`.
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
    """The parts of the library that we use."""

    kube_config: Any
    """Reads kubeconfig and runs exec plugins."""
    incluster_config: Any
    """Reads the service account."""
    rest: Any
    """Makes TLS contexts and connection pools from a configuration."""
    new_configuration: Any
    """Its `Configuration` class, called without arguments."""


def load() -> Library:
    """Blocks for some 0.1 s at the first call, so the first call belongs in a thread."""
    with _LOADING:
        return _load()


@functools.cache
def _load() -> Library:
    try:
        Path.home()
    except RuntimeError:
        # A numeric user without $HOME: the library needs a home directory at import, even where it does not use one.
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
