"""Loading of kubernetes_asyncio without its models, and the schedule for reading credentials again.

A normal import runs `kubernetes_asyncio/__init__.py`, which imports 900 modules of models: 36 MiB and half a second for
classes that AutoWasm never uses (ADR 0002, ADR 0024). `load` puts the packages into `sys.modules` unexecuted, imports the
parts, and removes the packages again, so an import elsewhere gets the whole library.
Invariants: `load` leaves no new name of the library in `sys.modules`; a failed refresh leaves the previous configuration in
use; a server that refuses the credentials does not cause reads more often than `min_credentials_interval`.
"""

import asyncio
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import structlog

from autowasm.limits import KubeLimits

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


_log = structlog.get_logger(__name__)

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_PLUGIN_MARGIN: Final = timedelta(minutes=2)
"""An exec plugin runs again this long before its token expires."""


class RefreshSchedule:
    """Calls `refresh` when it is due, one call at a time, and passes whether the server refused the current credentials.

    `refresh` raises OSError, ValueError or TimeoutError.
    """

    def __init__(self, refresh: Callable[[bool], Awaitable[None]], *, limits: KubeLimits) -> None:
        self._refresh = refresh
        self._limits = limits
        self._lock = asyncio.Lock()
        self._last = float("-inf")
        self._requested = False

    def request(self) -> None:
        """The server refused the credentials: refresh before the next call."""
        self._requested = True

    def refreshed(self) -> None:
        """Record that the credentials are current as of now."""
        self._last = asyncio.get_running_loop().time()
        self._requested = False

    async def catch_up(self) -> None:
        """Refresh if due. A failure is logged; the current credentials stay in use."""
        if not self._due():
            return
        async with self._lock:
            if not self._due():
                return
            refused = self._requested
            self.refreshed()
            try:
                async with asyncio.timeout(self._limits.credentials_timeout):
                    await self._refresh(refused)
            except (OSError, ValueError, TimeoutError) as error:
                _log.warning("credentials not refreshed", error=f"{type(error).__name__}: {error}")

    def _due(self) -> bool:
        age = asyncio.get_running_loop().time() - self._last
        limit = (
            self._limits.min_credentials_interval
            if self._requested
            else self._limits.credentials_every
        )
        return age >= limit


def plugin_valid_until(loader: Any) -> datetime | None:
    """When the exec plugin that a KubeConfigLoader ran must run again; None if there is no plugin.

    Without an expiry, the token is valid until the server refuses it, as in client-go.
    """
    if loader._user is None or "exec" not in loader._user:
        return None
    expiry = getattr(loader, "exec_plugin_expiry", None)
    if not isinstance(expiry, datetime):
        return datetime.max.replace(tzinfo=UTC)
    return expiry - _PLUGIN_MARGIN


def fingerprint_of(*parts: object, files: tuple[str | None, ...]) -> str:
    """A hash of connection settings and the contents of the files that they name. Blocks; raises OSError."""
    digest = hashlib.sha256(repr(parts).encode())
    for file in files:
        digest.update(b"\0" if file is None else hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.hexdigest()
