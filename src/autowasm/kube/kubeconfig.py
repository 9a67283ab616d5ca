"""ClientConfig: the configuration of a client, from a kubeconfig or a service account; and the schedule for reading it again.

kubernetes_asyncio reads the files and runs exec plugins. Invariants: a failed refresh leaves the previous configuration in use; a
server that refuses the credentials does not cause reads more often than `min_credentials_interval`; nothing is read on the loop.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import structlog
import yaml

from autowasm.limits import KubeLimits
from autowasm.net.pools import Pools
from autowasm.performance.libraryimport import load

if TYPE_CHECKING:
    from kubernetes_asyncio import client

    Configuration: TypeAlias = client.Configuration

_log = structlog.get_logger(__name__)

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_PLUGIN_MARGIN: Final = timedelta(minutes=2)
"""An exec plugin runs again this long before its token expires."""


class ClientConfig:
    """`kubeconfig` None: the service account of this Pod. `timeout`: seconds of one exec plugin. Its text is for messages."""

    def __init__(
        self,
        *,
        kubeconfig: Path | None,
        context: str | None,
        service_account: Path,
        environ: Mapping[str, str] | None,
        pools: Pools,
        timeout: float,
    ) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._service_account = service_account
        self._environ = environ
        self._pools = pools
        self._timeout = timeout
        self._plugin_until: datetime | None = None

    def __str__(self) -> str:
        if self._kubeconfig is not None:
            return f"--kubeconfig {self._kubeconfig}"
        return "--kubeconfig is not set, and no service account was found"

    @property
    def has_valid_token(self) -> bool:
        """Whether an exec plugin returned a token that has not expired."""
        return self._plugin_until is not None and datetime.now(UTC) < self._plugin_until

    async def load(self) -> "Configuration":
        """Raises OSError, ValueError."""
        run = self._pools.disk.run
        parts = await run(load)
        config = parts.kube_config
        # Not `Configuration()`: it would copy a default that other code in this process has set.
        configuration = type.__call__(parts.new_configuration)
        # Python 3.13 requires key identifiers that many clusters' certificates lack; Go and older Pythons do not.
        configuration.disable_strict_ssl_verification = True
        try:
            if self._kubeconfig is None:
                await run(self._load_service_account, configuration)
            else:
                # On its own loop in a thread: it awaits exec plugins, and reads files synchronously.
                loading = config.load_kube_config(
                    str(self._kubeconfig), self._context, client_configuration=configuration
                )
                limited = asyncio.wait_for(loading, self._timeout)
                self._plugin_until = plugin_valid_until(await run(asyncio.run, limited))
        except (
            config.ConfigException,
            yaml.YAMLError,
            TypeError,
            KeyError,
            AssertionError,
        ) as error:
            raise ValueError(str(error)) from error
        return cast("Configuration", configuration)

    def _load_service_account(self, configuration: "Configuration") -> None:
        more = {} if self._environ is None else {"environ": dict(self._environ)}
        load().incluster_config.load_incluster_config(
            configuration,
            try_refresh_token=False,  # it would read files on the loop
            token_filename=str(self._service_account / "token"),
            cert_filename=str(self._service_account / "ca.crt"),
            **more,
        )
        token = configuration.api_key["BearerToken"]
        configuration.api_key["BearerToken"] = token.strip()


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


def fingerprint_of(configuration: "Configuration") -> str:
    """A hash of the settings of the connection and the contents of the files that they name. Blocks; raises OSError."""
    settings = (
        configuration.host,
        configuration.verify_ssl,
        configuration.tls_server_name,
        configuration.proxy,
    )
    digest = hashlib.sha256(repr(settings).encode())
    for file in (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file):
        digest.update(b"\0" if file is None else hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.hexdigest()


class RefreshSchedule:
    """Calls `refresh` when it is due, one call at a time, and passes on whether the server refused the current credentials.

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
