"""KubeClient: raw calls of the Kubernetes API with deadlines, limits and typed errors.

With `connection.py` the only user of kubernetes_asyncio (by `library.py`), which reads kubeconfig and service account, runs
exec plugins and does TLS; it is imported when a client is opened, in a thread, because that takes a moment. Not typed models: bodies are bytes in, dicts out.
Invariants: no call is without a deadline; no body is ever logged, so no Secret is; a token or certificate authority that
was rotated is taken up without a restart.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import aiohttp
import structlog
import yaml

from autowasm.errors import UsageError
from autowasm.kube import calls, credentials, library
from autowasm.kube.calls import JSON, Call, Document, Method, Query
from autowasm.kube.connection import Connection
from autowasm.kube.documents import decode_document
from autowasm.kube.errors import Unauthorized, Unreachable
from autowasm.kube.resources import ObjectKey, ResourceType
from autowasm.limits import KubeLimits
from autowasm.net.pools import Pools

if TYPE_CHECKING:
    from kubernetes_asyncio.client import Configuration

_log = structlog.get_logger(__name__)


class Body:
    """What an answer brings, as it comes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.read = response.content.read
        self._transport = response.connection.transport if response.connection else None

    async def rest(self, seconds: float) -> None:
        """Take nothing for so long, and be woken once at most: what comes stays in the socket."""
        self._hold(True)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._hold(False)

    def _hold(self, on: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        # While nobody takes anything, asyncio's TLS goes on filling a buffer of its own, and is woken each time. Made as
        # small as can be only for the rest: below the size of a record it is used by nobody else.
        set_limits = getattr(transport, "set_read_buffer_limits", None)
        if set_limits is not None:
            set_limits(*((1, 0) if on else ()))
        if on:
            transport.pause_reading()
        else:
            transport.resume_reading()


class KubeClient:
    """One API server, one identity; an async context manager.

    `kubeconfig` None: the service account of the Pod we run in. `environ` (of the server's address) and
    `service_account` are what a kubelet provides; tests give their own.
    """

    def __init__(
        self,
        *,
        kubeconfig: Path | None,
        pools: Pools,
        user_agent: str,
        context: str | None = None,
        limits: KubeLimits | None = None,
        service_account: Path = credentials.SERVICE_ACCOUNT,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.limits = limits or KubeLimits()
        self._kubeconfig = kubeconfig
        self._context = context
        self._service_account = service_account
        self._environ = environ
        self._pools = pools
        self._user_agent = user_agent
        self._schedule = credentials.RefreshSchedule(self._refresh, limits=self.limits)
        self._connection: Connection | None = None
        self._plugin_until: datetime | None = None

    async def __aenter__(self) -> Self:
        """Read the configuration. Raises UsageError."""
        try:
            async with asyncio.timeout(self.limits.credentials_timeout):
                await self._refresh()
        except (OSError, ValueError, TimeoutError) as error:
            raise UsageError(self._no_configuration(error)) from error
        self._schedule.refreshed()
        _log.info("kubernetes api", host=self.host)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    @property
    def host(self) -> str:
        """Address of the API server: scheme, host and port."""
        return str(self._connection.configuration.host) if self._connection is not None else ""

    async def get(self, resource: ResourceType, key: ObjectKey) -> Document:
        """One object. Raises ApiError (NotFound, ...)."""
        return await decode_document(await self.request("GET", resource.object_path(key)))

    async def request(
        self,
        method: Method,
        path: str,
        *,
        query: Query | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        timeout: float | None = None,
        most: int | None = None,
    ) -> bytearray:
        """One call, the whole body of its answer, of at most `most` bytes, else `KubeLimits.body_bytes`.

        Raises ApiError for every answer but 2xx, and for none.
        """
        await self._schedule.catch_up()
        total = timeout if timeout is not None else self.limits.call_timeout
        call = Call(method, path, query or {}, body, content_type)
        deadlines = aiohttp.ClientTimeout(total=total, sock_connect=self.limits.connect_timeout)
        try:
            async with asyncio.timeout(total), self._answer(call, deadlines) as response:
                return await calls.read_body(response, limit=most or self.limits.body_bytes)
        except calls.NO_ANSWER as error:
            self._look_at(error)
            raise calls.no_answer(error, call) from error

    @asynccontextmanager
    async def stream(self, path: str, *, query: Query, silence: float) -> AsyncIterator[Body]:
        """GET an endless body. Raises ApiError as `request` does; Unreachable too if it breaks on the way.

        `silence`, in seconds, bounds the wait for each further byte. A caller who learns more about the server on the
        way can bound its reads more tightly.
        """
        await self._schedule.catch_up()
        call = Call("GET", path, query)
        deadlines = aiohttp.ClientTimeout(
            sock_connect=self.limits.connect_timeout, sock_read=silence
        )
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self.limits.call_timeout):
                    response = await stack.enter_async_context(self._answer(call, deadlines))
                yield Body(response)
            except calls.NO_ANSWER as error:
                self._look_at(error)
                raise calls.no_answer(error, call) from error

    @asynccontextmanager
    async def _answer(
        self, call: Call, deadlines: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with status 2xx, released at the end. Raises ApiError for others, and what aiohttp raises."""
        connection = self._connection
        if connection is None:
            raise Unreachable("the client is closed")
        async with connection.send(call, deadlines) as response:
            if not 200 <= response.status < 300:
                error = await calls.refusal(response, call)
                self._look_at(error)
                raise error
            yield response

    def _look_at(self, error: BaseException) -> None:
        """Have the configuration read again if it may be out of date."""
        if isinstance(
            error,
            Unauthorized | aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError,
        ):
            self._schedule.want()

    def _no_configuration(self, error: BaseException) -> str:
        if self._kubeconfig is not None:
            return f"--kubeconfig {self._kubeconfig}: {error}"
        return f"no --kubeconfig is given, and there is no service account: {error}"

    async def _refresh(self, refused: bool = True) -> None:
        """Read the configuration again; a new connection pool only if more than the token differs."""
        if (
            not refused
            and self._plugin_until is not None
            and datetime.now(UTC) < self._plugin_until
        ):
            return
        configuration = await self._load()
        fingerprint = await self._pools.disk.run(_fingerprint, configuration)
        if self._connection is not None and self._connection.fingerprint == fingerprint:
            self._connection.configuration.api_key = configuration.api_key
            return
        previous = self._connection
        self._connection = Connection(
            configuration, fingerprint=fingerprint, user_agent=self._user_agent
        )
        if previous is not None:
            _log.info("kubernetes connection settings changed", host=self.host)
            await previous.retire()

    async def _load(self) -> "Configuration":
        """Raises OSError, ValueError."""
        run = self._pools.disk.run
        parts = await run(library.load)
        config = parts.kube_config
        # Not `Configuration()`: a default that somebody set in this process would be copied.
        configuration = type.__call__(parts.new_configuration)
        # Python 3.13 asks for key identifiers that many clusters' certificates lack; Go, and older Pythons, do not.
        configuration.disable_strict_ssl_verification = True
        try:
            if self._kubeconfig is None:
                await run(self._load_service_account, configuration)
            else:
                # On a loop of its own, in a thread: it awaits exec plugins, and reads files as if no loop were there.
                loading = config.load_kube_config(
                    str(self._kubeconfig), self._context, client_configuration=configuration
                )
                limited = asyncio.wait_for(loading, self.limits.credentials_timeout)
                self._plugin_until = credentials.plugin_valid_until(await run(asyncio.run, limited))
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
        library.load().incluster_config.load_incluster_config(
            configuration,
            try_refresh_token=False,  # it would read files on the loop
            token_filename=str(self._service_account / "token"),
            cert_filename=str(self._service_account / "ca.crt"),
            **more,
        )
        token = configuration.api_key["BearerToken"]
        configuration.api_key["BearerToken"] = token.strip()


def _fingerprint(configuration: "Configuration") -> str:
    return credentials.fingerprint_of(
        configuration.host,
        configuration.verify_ssl,
        configuration.tls_server_name,
        configuration.proxy,
        files=(configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file),
    )
