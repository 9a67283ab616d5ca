"""When and how configuration is read: kubeconfig or service account, again after a while, at once after a refusal.

Not the reading itself (kubernetes_asyncio does that, in `client.py`). Invariants: a failure to read again leaves what
was read before in use; a server that refuses us does not make us read more often than `credentials_least`.
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
        limit = self._limits.credentials_least if self._wanted else self._limits.credentials_every
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
