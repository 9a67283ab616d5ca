"""The connections of requests and urllib3, for code that runs in a Transfer's thread.

Retries, redirects and credentials are the caller's. Invariants: for every connection the name is resolved with a bounded wait
in the names pool, the address policy checks the very address that is connected to, and the current Transfer adopts the
socket; TLS trust comes only from the context given here.
"""

import contextlib
import functools
import http.client
import ipaddress
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import requests.adapters
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
)

from autowasm.errors import AddressBlocked, SourceUnavailable
from autowasm.limits import Limits
from autowasm.net.addresspolicy import AddressPolicy, Purpose
from autowasm.net.pools import Pool
from autowasm.net.proxy import DIRECT, Proxies, Proxy, open_tunnel, written_addresses
from autowasm.net.transfer import current_transfer
from autowasm.reasons import Reason

NETWORK_ERRORS: Final = (
    requests.RequestException,
    HTTPError,
    http.client.HTTPException,
    OSError,
)
"""Exceptions of requests, urllib3 and the layers below for a failed request."""

Resolver = Callable[..., list[tuple[Any, Any, int, str, Any]]]
"""`socket.getaddrinfo`."""

SocketOptions = Sequence[tuple[int, int, int | bytes]]

_SEND_BLOCK = 256 * 1024  # http.client's 16 KiB costs a system call and a lock for each block


class Dialer:
    """Resolves names, checks addresses and connects. One for each registry client; safe in any thread."""

    def __init__(
        self,
        *,
        names: Pool,
        policy: AddressPolicy | None,
        purpose: Purpose,
        limits: Limits,
        proxies: Proxies = DIRECT,
        resolver: Resolver = socket.getaddrinfo,
    ) -> None:
        """`resolver` is the system's; tests pass one that changes its answers."""
        self._names = names
        self._policy = policy
        self._purpose = purpose
        self._limits = limits
        self._proxies = proxies
        self._resolver = resolver

    def proxy_for(self, host: str, port: int, *, tls: bool) -> Proxy | None:
        """The proxy for `host`, None for a direct connection. Raises UsageError."""
        return self._proxies.proxy_for(host, port, tls=tls)

    def connect(self, host: str, port: int, *, options: SocketOptions = ()) -> socket.socket:
        """A connected socket for plain HTTP, to the proxy if one is to be used for `host`.

        Raises gaierror, OSError, UsageError, SourceUnavailable if the proxy cannot be reached, and AddressBlocked if no
        address of `host` is allowed.
        """
        return self._connect_by(self.proxy_for(host, port, tls=False), host, port, options=options)

    def tunnel(self, host: str, port: int, *, options: SocketOptions = ()) -> socket.socket:
        """A socket over which TLS with `host` can begin. Raises as `connect`."""
        proxy = self.proxy_for(host, port, tls=True)
        sock = self._connect_by(proxy, host, port, options=options)
        if proxy is not None:
            try:
                open_tunnel(
                    sock, proxy, host=host, port=port, limit=self._limits.proxy_answer_bytes
                )
            except BaseException:
                sock.close()
                raise
        return sock

    def _connect_by(
        self, proxy: Proxy | None, host: str, port: int, *, options: SocketOptions
    ) -> socket.socket:
        if proxy is None:
            return self._connect_to(host, port, options=options, judged=True)
        # The proxy resolves the name, so only an address that is written in the URL can be checked here.
        for address in written_addresses(host):
            self._judge(address, host=host, port=port)
        try:
            return self._connect_to(proxy.host, proxy.port, options=options, judged=False)
        except OSError as error:
            problem = error.strerror or "no answer in time"
            raise SourceUnavailable(
                f"the proxy {proxy.host}:{proxy.port}, used for {host}, cannot be reached: {problem}",
                reason=Reason.REGISTRY_UNAVAILABLE,
            ) from error

    def _connect_to(
        self, host: str, port: int, *, options: SocketOptions, judged: bool
    ) -> socket.socket:
        blocked: AddressBlocked | None = None
        failure: OSError | None = None
        for family, kind, protocol, _, address in self._resolve(host.strip("[]"), port):
            try:
                if judged:
                    self._judge(str(address[0]), host=host, port=port)
                return self._connect(family, kind, protocol, address, options=options)
            except AddressBlocked as error:
                blocked = error
            except OSError as error:
                failure = error
        if failure is not None:
            raise failure
        raise blocked or socket.gaierror(socket.EAI_NONAME, "the name has no address")

    def _judge(self, address: str, *, host: str, port: int) -> None:
        if self._policy is not None:
            self._policy.check(address, purpose=self._purpose, host=host, port=port)

    def _resolve(self, host: str, port: int) -> list[tuple[Any, Any, int, str, tuple[Any, ...]]]:
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host.partition("%")[0])
            return socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
        lookup = self._names.submit(self._resolver, host, port, type=socket.SOCK_STREAM)
        try:
            return current_transfer().wait_for(lookup, timeout=self._limits.dns_timeout)
        except UnicodeError as error:  # a label longer than 63 characters
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error
        except TimeoutError as error:
            raise socket.gaierror(
                socket.EAI_AGAIN,
                f"no answer from the name service in {self._limits.dns_timeout:g} s",
            ) from error

    def _connect(
        self, family: int, kind: int, protocol: int, address: Any, *, options: SocketOptions
    ) -> socket.socket:
        sock = socket.socket(family, kind, protocol)
        try:
            for option in options:
                sock.setsockopt(*option)
            sock.settimeout(self._limits.connect_timeout)
            current_transfer().adopt(
                sock
            )  # first, so that the loop can also abort the connection attempt
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock


class _DialedConnection(HTTPConnection):
    """urllib3's connection over a Dialer."""

    def __init__(self, *args: Any, dialer: Dialer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dialer = dialer

    def _new_conn(self) -> socket.socket:
        return _dial(self, self._dialer.connect)

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:  # kept from an earlier transfer
            current_transfer().adopt(self.sock)
        port = self.port or 80
        proxy = self._dialer.proxy_for(self.host, port, tls=False)
        if proxy is None:
            super().putrequest(method, url, *args, **kwargs)
            return
        name = f"[{self.host}]" if ":" in self.host else self.host
        named = name if port == 80 else f"{name}:{port}"
        # RFC 9112 section 3.2.2: a proxy gets the whole URL, from which http.client derives the origin's `Host`.
        super().putrequest(method, f"http://{named}{url}", *args, **kwargs)
        if proxy.authorization:
            self.putheader("Proxy-Authorization", proxy.authorization)


class _DialedTlsConnection(HTTPSConnection):
    """The same with TLS: urllib3 sends the server name and checks the host name."""

    def __init__(self, *args: Any, dialer: Dialer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dialer = dialer

    def _new_conn(self) -> socket.socket:
        return _dial(self, self._dialer.tunnel)

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            current_transfer().adopt(self.sock)
        super().putrequest(*args, **kwargs)


def _dial(connection: HTTPConnection, connect: Callable[..., socket.socket]) -> socket.socket:
    """Replaces urllib3's `_new_conn`: connects with `connect` and raises urllib3's exceptions."""
    host = connection._dns_host  # keeps the trailing dot, which `host` drops
    try:
        sock = connect(host, connection.port, options=connection.socket_options or ())
    except socket.gaierror as error:
        raise NameResolutionError(connection.host, connection, error) from error
    except TimeoutError as error:
        raise ConnectTimeoutError(connection, "the connection was not made in time") from error
    except OSError as error:
        raise NewConnectionError(connection, str(error)) from error
    sys.audit("http.client.connect", connection, connection.host, connection.port)
    return sock


class _DialedPool(HTTPConnectionPool):
    def __init__(self, *args: Any, dialer: Dialer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ConnectionCls = functools.partial(_DialedConnection, dialer=dialer)  # type: ignore[assignment]


class _DialedTlsPool(HTTPSConnectionPool):
    def __init__(self, *args: Any, dialer: Dialer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ConnectionCls = functools.partial(_DialedTlsConnection, dialer=dialer)  # type: ignore[assignment]

    def _validate_conn(self, conn: Any) -> None:
        # Omits super()'s warning at every request: the operator configured this host as insecure.
        if conn.is_closed:
            conn.connect()


class DialedAdapter(requests.adapters.HTTPAdapter):
    """The adapter to mount on a `requests.Session` for `http://` and `https://`. Never retries."""

    def __init__(self, *, dialer: Dialer, tls: Callable[[str, int | None], ssl.SSLContext]) -> None:
        """`tls` gives the context for a host and port (`net.tls.Trust.context`)."""
        self._dialer = dialer
        self._tls = tls
        super().__init__(pool_connections=4, pool_maxsize=1)

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any
    ) -> None:
        """The base class calls this in its constructor."""
        self.poolmanager = urllib3.PoolManager(
            num_pools=connections,
            maxsize=maxsize,
            block=block,
            blocksize=_SEND_BLOCK,
            **pool_kwargs,
        )
        self.poolmanager.pool_classes_by_scheme = {
            "http": functools.partial(_DialedPool, dialer=self._dialer),
            "https": functools.partial(_DialedTlsPool, dialer=self._dialer),
        }

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> Any:
        """Use the context of this host; `verify` and `cert` would load files for each connection."""
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        if host["scheme"] != "https":
            return host, {}
        return host, {"ssl_context": self._tls(host["host"], host["port"])}

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Does nothing: see `build_connection_pool_key_attributes`."""
