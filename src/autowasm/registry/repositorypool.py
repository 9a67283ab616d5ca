"""Repositories: connections and tokens kept between the operations on one repository.

Not a limit of concurrent operations (see `net/pools.py`, `transfer`). Invariants: a repository is used by one thread at a
time, and only for the same host, repository, credential and actions; after any failure but SourceNotFound and SourceDenied
it is closed, not kept; at most `limits.idle_registries` are kept.
"""

import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from autowasm.errors import SourceDenied, SourceNotFound
from autowasm.limits import Limits
from autowasm.net.addresspolicy import AddressPolicy, Purpose
from autowasm.net.hosts import is_loopback, names_host
from autowasm.net.pools import Pools
from autowasm.net.proxy import Proxies, Proxy, ProxyRules
from autowasm.net.tls import Trust
from autowasm.reference import ImageReference
from autowasm.registry.auth import LoginThrottle
from autowasm.registry.credentials import Credential, fingerprint_of
from autowasm.registry.ratelimiter import HostRateLimiter
from autowasm.settings import Outgoing

if TYPE_CHECKING:
    from autowasm.net.dialer import Resolver
    from autowasm.registry.repository import Repository


T = TypeVar("T")
_Key = tuple[str, str, str, str]


class RepositoryPool:
    """The idle repositories of one process. Safe in any thread."""

    def __init__(
        self,
        *,
        outgoing: Outgoing,
        limits: Limits,
        pools: Pools,
        policy: AddressPolicy | None,
        resolver: "Resolver | None" = None,
        on_request: Callable[[str], None] = lambda _: None,
        proxies: Proxies | None = None,
    ) -> None:
        """Raises UsageError. `resolver` None: the system's; `proxies` None: those of `outgoing`."""
        self._outgoing = outgoing
        self._limits = limits
        self._pools = pools
        self._policy = policy
        self._on_request = on_request
        self._resolver = resolver or socket.getaddrinfo
        self._trust = Trust(outgoing)
        self._proxies = proxies or ProxyRules(
            Proxy.parse(outgoing.proxy) if outgoing.proxy else None, outgoing.no_proxy
        )
        self._logins = LoginThrottle(limits)
        self._rate_limiter = HostRateLimiter(
            rate=outgoing.host_rate, burst=outgoing.host_burst, limits=limits
        )
        self._lock = threading.Lock()
        self._idle: OrderedDict[_Key, list[Repository]] = OrderedDict()
        """The least recently used first. Not a cache: the limit is over all lists, and an evicted repository must be closed."""
        self._closed = False

    def use(
        self,
        operation: "Callable[[Repository], T]",
        reference: ImageReference,
        *,
        credential: Credential | None,
        actions: str,
    ) -> T:
        """Run `operation` in this thread. After a failed exchange the repository is closed."""
        key = (reference.host, reference.repository, fingerprint_of(credential), actions)
        repository = self._take(key) or self._make(reference, credential, actions=actions)
        reusable = False
        try:
            result = operation(repository)
            reusable = True
        except (SourceNotFound, SourceDenied):
            reusable = True
            raise
        finally:
            if not reusable or not self._keep(key, repository):
                repository.close()
        return result

    def close(self) -> None:
        """Close the idle repositories; those in use are closed when their operations end."""
        with self._lock:
            self._closed = True
            idle = [repository for kept in self._idle.values() for repository in kept]
            self._idle.clear()
        for repository in idle:
            repository.close()

    def _take(self, key: _Key) -> "Repository | None":
        with self._lock:
            kept = self._idle.pop(key, None)
            if not kept:
                return None
            repository = kept.pop()
            if kept:
                self._idle[key] = kept
            return repository

    def _keep(self, key: _Key, repository: "Repository") -> bool:
        dropped: list[Repository] = []
        with self._lock:
            if self._closed:
                return False
            self._idle.setdefault(key, []).append(repository)
            self._idle.move_to_end(key)
            while sum(map(len, self._idle.values())) > self._limits.idle_registries:
                dropped += self._idle.popitem(last=False)[1]
        for old in dropped:
            old.close()
        return True

    def _speaks_plain_http(self, host: str) -> bool:
        outgoing = self._outgoing
        if names_host(outgoing.plain_http, host):
            return True
        of_tls = (*outgoing.insecure, *(entry for entry, _ in outgoing.ca_files))
        with_tls = outgoing.ca_file is not None or names_host(of_tls, host)
        return outgoing.plain_loopback and is_loopback(host) and not with_tls

    def _make(
        self, reference: ImageReference, credential: Credential | None, *, actions: str
    ) -> "Repository":
        # The import of oras, requests and jsonschema takes 0.25 s: it runs in this thread, and not for `wasmc --help`.
        from autowasm.net.dialer import Dialer  # noqa: PLC0415
        from autowasm.registry.repository import Repository  # noqa: PLC0415
        from autowasm.registry.transport import RegistryTransport  # noqa: PLC0415

        advice = self._outgoing.advice
        if not names_host(
            self._outgoing.plain_http, reference.host
        ):  # plain http, if used, was chosen without a flag
            advice = replace(
                advice,
                no_plain_http=f"trust its CA with {advice.ca_file}, or skip verification with {advice.insecure}",
            )
        transport = RegistryTransport(
            reference,
            credential=credential,
            actions=actions,
            plain_http=self._speaks_plain_http(reference.host),
            tls=self._trust.context,
            dialer=Dialer(
                names=self._pools.names,
                policy=self._policy,
                purpose=Purpose.REGISTRY,
                limits=self._limits,
                proxies=self._proxies,
                resolver=self._resolver,
            ),
            logins=self._logins,
            rate_limiter=self._rate_limiter,
            on_request=self._on_request,
            advice=advice,
            limits=self._limits,
        )
        return Repository(
            transport,
            reference,
            credential=credential,
            advice=advice,
            limits=self._limits,
        )
