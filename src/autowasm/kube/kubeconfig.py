"""The parts of kubernetes_asyncio that we use, without its 900 modules of models.

Importing any of them the usual way runs `kubernetes_asyncio/__init__.py`, which imports everything: 36 MiB and half a second,
for classes that nobody here makes one of (ADR 0002, ADR 0024). Here the packages stand in `sys.modules` unexecuted while
their parts are imported, and are taken out again: whoever imports the library elsewhere gets all of it.
Not a copy or a change of the library. Invariant: after `load`, `sys.modules` names nothing of it that was not there before.

When and how configuration is read: kubeconfig or service account, again after a while, at once after a refusal.

Not the reading itself (kubernetes_asyncio does that, in `client.py`). Invariants: a failure to read again leaves what
was read before in use; a server that refuses us does not make us read more often than `min_credentials_interval`.
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


_log = structlog.get_logger(__name__)

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_PLUGIN_MARGIN: Final = timedelta(minutes=2)
"""An exec plugin is asked again this long before its token expires."""


class RefreshSchedule:
    """Calls `refresh` at most once at a time, when it is due, and tells it whether the server refused what we have.

    `refresh` raises OSError, ValueError or TimeoutError.
    """

    def __init__(self, refresh: Callable[[bool], Awaitable[None]], *, limits: KubeLimits) -> None:
        self._refresh = refresh
        self._limits = limits
        self._lock = asyncio.Lock()
        self._last = float("-inf")
        self._wanted = False

    def want(self) -> None:
        """The server refused what we have: refresh before the next call, not only when time has passed."""
        self._wanted = True

    def refreshed(self) -> None:
        """What we have is fresh as of now."""
        self._last = asyncio.get_running_loop().time()
        self._wanted = False

    async def catch_up(self) -> None:
        """Refresh if it is due. A failure is logged; what we have stays in use."""
        if not self._due():
            return
        async with self._lock:
            if not self._due():
                return
            refused = self._wanted
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
            if self._wanted
            else self._limits.credentials_every
        )
        return age >= limit


def plugin_valid_until(loader: Any) -> datetime | None:
    """Until when the exec plugin that a KubeConfigLoader ran need not be asked again; None if there is none.

    Without an expiry that is until the server refuses its token, as client-go has it.
    """
    if loader._user is None or "exec" not in loader._user:
        return None
    expiry = getattr(loader, "exec_plugin_expiry", None)
    if not isinstance(expiry, datetime):
        return datetime.max.replace(tzinfo=UTC)
    return expiry - _PLUGIN_MARGIN


def fingerprint_of(*parts: object, files: tuple[str | None, ...]) -> str:
    """A digest over settings of a connection and the contents of the files that they name. Blocks; raises OSError."""
    digest = hashlib.sha256(repr(parts).encode())
    for file in files:
        digest.update(b"\0" if file is None else hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.hexdigest()
