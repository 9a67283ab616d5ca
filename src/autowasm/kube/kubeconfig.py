"""The schedule for reading the credentials of a kubeconfig or a service account again.

Invariants: a failed refresh leaves the previous configuration in use; a server that refuses the credentials does not cause reads more often than `min_credentials_interval`.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from autowasm.limits import KubeLimits

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
