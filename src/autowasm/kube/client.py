"""KubeClient: raw calls of the Kubernetes API with deadlines, limits and typed errors; and ClientConfig, its configuration.

ClientConfig is read from a kubeconfig or a service account, and read again in time. kubernetes_asyncio reads the files and runs exec
plugins. `performance/libraryimport.py` imports it, in a thread, when a client is opened; here it is imported for types only. Bodies are
bytes in and dicts out, not typed models. Invariants: every call has a deadline; no body is logged, so no Secret is logged; a message names method
and path, never a query, a header or a body; a rotated token or certificate authority takes effect without a restart; a failed refresh
leaves the previous configuration in use; a server that refuses the credentials does not cause reads more often than
`min_credentials_interval`; a replaced connection is closed when its last call ends; no file is read on the loop.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, cast
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies_environment

import aiohttp
import msgspec
import structlog
import yaml

from autowasm.errors import UsageError
from autowasm.kube.codec import decode_document
from autowasm.kube.errors import (
    AnswerTooLong,
    ApiError,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
    from_response,
)
from autowasm.kube.resources import ObjectKey, ResourceType
from autowasm.limits import KubeLimits
from autowasm.net.errors import retry_after
from autowasm.net.pools import Pools
from autowasm.net.proxy import NoProxy
from autowasm.net.tls import check_chains_as_curl
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


Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Query = Mapping[str, str]
Document = dict[str, Any]

JSON: Final = "application/json"
_ERROR_BODY_BYTES: Final = 64 * 1024
_SHOWN: Final = 256
_READ_BUFFER: Final = 2 * 1024 * 1024
"""Bytes, the value of kubernetes_asyncio: an event with an object of etcd's maximum size fits."""
_encoder = msgspec.json.Encoder()

NO_ANSWER: Final = (
    aiohttp.ClientError,
    aiohttp.http_exceptions.HttpProcessingError,
    OSError,
)
"""The exceptions of aiohttp for a call without an answer. OSError includes TimeoutError and ssl.SSLError."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request. Its text is for messages: no query, no body."""

    method: Method
    path: str
    query: Query
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    content_type: str = JSON

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


async def read_body(response: aiohttp.ClientResponse, *, limit: int) -> bytearray:
    """The whole body. Raises AnswerTooLong above `limit` bytes."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise AnswerTooLong(
                f"{response.method} {response.url.path}: the response is longer than {limit} bytes"
            )
    return body


async def refusal(response: aiohttp.ClientResponse, call: Call) -> ApiError:
    """The error for an answer whose status is not 2xx."""
    try:
        body = bytes(await read_body(response, limit=_ERROR_BODY_BYTES))
    except UnexpectedAnswer:
        body = b""
    wait = retry_after(response.headers.get("Retry-After"))
    return from_response(response.status, body, retry_after=wait, request=str(call))


def no_answer(error: BaseException, call: Call) -> Unreachable:
    """The error for an exception of NO_ANSWER."""
    what = "no answer in time" if isinstance(error, TimeoutError) else str(error)
    return Unreachable(f"{call}: {type(error).__name__}: {what[:_SHOWN]}")


class ApiConnection:
    """A pool of connections to one API server, with one identity and one TLS configuration.

    kubernetes_asyncio creates the TLS context; the calls use aiohttp directly. The library's session would search for a .netrc in
    a thread of the default executor before every call (`trust_env`), and its client copies each body before it encodes it.
    `fingerprint` identifies the settings of the connection. The token may change while it is open.
    """

    def __init__(
        self, configuration: "Configuration", *, fingerprint: str, user_agent: str
    ) -> None:
        self.fingerprint = fingerprint
        self.configuration = configuration
        self._user_agent = user_agent
        self._rest = load().rest.RESTClientObject(configuration)
        connector = self._rest.pool_manager.connector
        # kubernetes_asyncio does not expose its SSL context, and has a switch for only one of the two flags.
        check_chains_as_curl(connector._ssl)
        self._session = aiohttp.ClientSession(
            connector=connector,
            connector_owner=False,
            read_bufsize=_READ_BUFFER,
        )
        self._proxy = configuration.proxy or _proxy_for(str(configuration.host))
        self._users = 0
        self._retired = False

    @asynccontextmanager
    async def send(
        self, call: Call, deadlines: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, of any status; released at the end. Raises the exceptions of aiohttp."""
        self._users += 1
        configuration = self.configuration
        headers = {
            "Accept": JSON,
            # Compressed lists would save bandwidth on a fast network, and cost processor time on both sides.
            "Accept-Encoding": "identity",
            "User-Agent": self._user_agent,
        }
        if call.body is not None:
            headers["Content-Type"] = call.content_type
        query = "?" + urlencode(call.query) if call.query else ""
        try:
            token = await configuration.get_api_key_with_prefix("BearerToken")
            if token:
                headers["Authorization"] = token
            async with self._session.request(
                call.method,
                f"{configuration.host}{call.path}{query}",
                headers=headers,
                data=None if call.body is None else _encoder.encode(call.body),
                timeout=deadlines,
                proxy=self._proxy,
                proxy_headers=configuration.proxy_headers,
                server_hostname=configuration.tls_server_name or None,
                allow_redirects=False,
            ) as response:
                yield response
        finally:
            self._users -= 1
            await self._close_if_unused()

    async def retire(self) -> None:
        """Close the connection when its last call ends."""
        self._retired = True
        await self._close_if_unused()

    async def close(self) -> None:
        """Close the connection now; calls in flight fail."""
        await self._session.close()
        await self._rest.close()

    async def _close_if_unused(self) -> None:
        if self._retired and self._users == 0:
            await self.close()


def _proxy_for(url: str) -> str | None:
    """The proxy of the environment (HTTPS_PROXY, NO_PROXY), never for a loopback host: golang.org/x/net/http/httpproxy."""
    parts, environment = urlsplit(url), getproxies_environment()
    exceptions = NoProxy.parse(environment.get("no", ""))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    direct = exceptions.covers(parts.hostname or "", port)
    return None if direct else environment.get(parts.scheme)


class Body:
    """The body of an answer, as a stream; `transport` None: the connection is closed already."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.read = response.content.read
        self.transport = response.connection.transport if response.connection else None


class KubeClient:
    """One API server, one identity; an async context manager.

    `kubeconfig` None: the service account of this Pod. The kubelet provides `environ` (the server's address) and
    `service_account`; tests pass their own.
    """

    def __init__(
        self,
        *,
        kubeconfig: Path | None,
        pools: Pools,
        user_agent: str,
        context: str | None = None,
        limits: KubeLimits | None = None,
        service_account: Path = SERVICE_ACCOUNT,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.limits = limits or KubeLimits()
        self._config = ClientConfig(
            kubeconfig=kubeconfig,
            context=context,
            service_account=service_account,
            environ=environ,
            pools=pools,
            timeout=self.limits.credentials_timeout,
        )
        self._pools = pools
        self._user_agent = user_agent
        self._schedule = RefreshSchedule(self._refresh, limits=self.limits)
        self._connection: ApiConnection | None = None

    async def __aenter__(self) -> Self:
        """Read the configuration. Raises UsageError."""
        try:
            async with asyncio.timeout(self.limits.credentials_timeout):
                await self._refresh()
        except (OSError, ValueError, TimeoutError) as error:
            raise UsageError(f"{self._config}: {error}") from error
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
        """One call. Returns the whole body, at most `most` bytes or else `KubeLimits.body_bytes`.

        Raises ApiError for an answer that is not 2xx, and for a call without an answer.
        """
        await self._schedule.catch_up()
        total = timeout if timeout is not None else self.limits.call_timeout
        call = Call(method, path, query or {}, body, content_type)
        deadlines = aiohttp.ClientTimeout(total=total, sock_connect=self.limits.connect_timeout)
        try:
            async with asyncio.timeout(total), self._answer(call, deadlines) as response:
                return await read_body(response, limit=most or self.limits.body_bytes)
        except NO_ANSWER as error:
            self._note_refusal(error)
            raise no_answer(error, call) from error

    @asynccontextmanager
    async def stream(self, path: str, *, query: Query, silence: float) -> AsyncIterator[Body]:
        """GET an endless body. Raises ApiError as `request` does, and Unreachable if the stream breaks.

        `silence`, in seconds, bounds the wait for each further byte. The caller can set tighter bounds on its reads.
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
            except NO_ANSWER as error:
                self._note_refusal(error)
                raise no_answer(error, call) from error

    @asynccontextmanager
    async def _answer(
        self, call: Call, deadlines: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with status 2xx, released at the end. Raises ApiError for others, and the exceptions of aiohttp."""
        connection = self._connection
        if connection is None:
            raise Unreachable("the client is closed")
        async with connection.send(call, deadlines) as response:
            if not 200 <= response.status < 300:
                error = await refusal(response, call)
                self._note_refusal(error)
                raise error
            yield response

    def _note_refusal(self, error: BaseException) -> None:
        """Schedule a refresh of the configuration if it may be out of date."""
        if isinstance(
            error,
            Unauthorized | aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError,
        ):
            self._schedule.request()

    async def _refresh(self, refused: bool = True) -> None:
        """Read the configuration again; open a new connection pool only if more than the token differs."""
        if not refused and self._config.has_valid_token:
            return
        configuration = await self._config.load()
        fingerprint = await self._pools.disk.run(fingerprint_of, configuration)
        if self._connection is not None and self._connection.fingerprint == fingerprint:
            self._connection.configuration.api_key = configuration.api_key
            return
        previous = self._connection
        self._connection = ApiConnection(
            configuration, fingerprint=fingerprint, user_agent=self._user_agent
        )
        if previous is not None:
            _log.info("kubernetes connection settings changed", host=self.host)
            await previous.retire()
