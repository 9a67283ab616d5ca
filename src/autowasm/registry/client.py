"""RegistryClient: resolve, download and push images, awaitable; the only entry into `registry/` for downloads and pushes.

RepositoryPool keeps connections and tokens between the operations on one repository; thread pools (`net/pools.py`) limit concurrent
operations. Bytes are neither unpacked nor checked as wasm here. Invariants: every operation ends within `limits.fetch_timeout`,
whatever the registry does; a manifest is used only if its bytes have the requested or announced digest; a refused or missing image is
requested once; only statuses that mean "later" and broken connections are retried, up to `limits.attempts` attempts; a repository is
used by one thread at a time, and only for the same host, repository, credential and actions; after any failure but SourceNotFound and
SourceDenied it is closed, not kept; at most `limits.idle_registries` are kept.
"""

import asyncio
import functools
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog

from autowasm.digest import Digest, DigestVerifier, HashedFile
from autowasm.errors import ContentRejected, SourceDenied, SourceNotFound, SourceUnavailable
from autowasm.flowcontrol import Backoff
from autowasm.limits import Limits
from autowasm.net.addresspolicy import AddressPolicy, Purpose
from autowasm.net.hosts import is_loopback, names_host
from autowasm.net.pools import Pools
from autowasm.net.proxy import Proxies, Proxy, ProxyRules
from autowasm.net.tls import Trust
from autowasm.net.transfer import run_transfer
from autowasm.reasons import Reason
from autowasm.reference import ImageReference
from autowasm.registry import mediatypes
from autowasm.registry.auth import LoginThrottle
from autowasm.registry.credentials import Credential, fingerprint_of
from autowasm.registry.manifest import (
    Descriptor,
    ImageIndex,
    Manifest,
    children_by_preference,
    is_marked_wasm,
    parse_manifest,
)
from autowasm.registry.package import Layer, Package
from autowasm.registry.ratelimiter import HostRateLimiter
from autowasm.settings import Outgoing
from autowasm.units import format_size

if TYPE_CHECKING:
    from autowasm.net.dialer import Resolver
    from autowasm.registry.repository import ManifestAnswer, Repository

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


OnBytes = Callable[[int], None]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """The result of resolving a reference at one moment."""

    digest: Digest
    """Of the index or manifest that the reference names. The reference is pinned with it."""
    manifest: Manifest
    """The runnable image: of an index, its chosen child."""
    index: ImageIndex | None = None
    """The index that the reference names, if it names one."""
    child: Digest | None = None
    """The digest of `manifest`, if it was chosen from an index."""


class RegistryClient:
    """Talks to any number of registries. Make one for each process, and `await close()` it."""

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
        """`policy` None: every address may be reached (`wasmc`, run by a person). `resolver` None: the system's.

        `proxies` None: those of `outgoing`. `on_request` gets the `HOST[:PORT]` of each request, in any thread. Raises UsageError.
        """
        self._limits = limits
        self._pools = pools
        self._repositories = RepositoryPool(
            outgoing=outgoing,
            limits=limits,
            pools=pools,
            policy=policy,
            resolver=resolver,
            on_request=on_request,
            proxies=proxies,
        )

    async def close(self) -> None:
        """Close kept connections."""
        self._repositories.close()

    async def resolve(
        self, reference: ImageReference, *, credential: Credential | None
    ) -> ResolvedImage:
        """The manifest behind `reference`, through an index if necessary.

        Raises SourceNotFound (`ImageNotFound`), SourceDenied, SourceUnavailable, AddressBlocked, ContentRejected
        (`DigestMismatch`, `ManifestInvalid`, `TooLarge`).
        """
        return await self._run(
            functools.partial(_resolve, reference=reference, limits=self._limits),
            reference,
            credential=credential,
            what=f"image {reference}",
        )

    async def head(
        self, reference: ImageReference, *, credential: Credential | None
    ) -> Digest | None:
        """The digest that the registry announces for `reference`; None if it announces none. Raises as `resolve`."""
        return await self._run(
            lambda repository: repository.head_manifest(
                reference.version, accept=mediatypes.ACCEPT
            ),
            reference,
            credential=credential,
            what=f"image {reference}",
        )

    async def download(
        self,
        reference: ImageReference,
        descriptor: Descriptor,
        destination: Path,
        *,
        credential: Credential | None,
        on_bytes: OnBytes | None = None,
    ) -> HashedFile | None:
        """Write a layer to `destination`, which is overwritten; digest and size are verified during the download.

        Returns the written file; None if the digest of the layer is not a sha256. `on_bytes` runs on the loop and gets the number of
        bytes since its last call, retries included. Raises as `resolve`,
        and StorageError. After an error the caller removes the partial file.
        """
        digest = descriptor.digest
        what = f"layer {digest} of {reference.name}"
        if descriptor.size > self._limits.layer_bytes:
            raise ContentRejected(
                f"{what}: {format_size(descriptor.size)}; at most "
                f"{format_size(self._limits.layer_bytes)} are accepted",
                reason=Reason.TOO_LARGE,
            )
        return await self._run(
            lambda repository: repository.download(
                digest, size=descriptor.size, destination=destination
            ),
            reference,
            credential=credential,
            what=what,
            on_bytes=on_bytes,
        )

    async def push(
        self,
        reference: ImageReference,
        package: Package,
        *,
        credential: Credential | None,
        on_bytes: OnBytes | None = None,
    ) -> Digest:
        """Upload the blobs that the registry lacks, then the manifest under `reference`. Returns the manifest's digest.

        Raises as `resolve`; `on_bytes` as in `download`.
        """
        deadline = time.monotonic() + self._limits.fetch_timeout
        for layer in (*package.layers, package.config):
            await self.upload(
                reference, layer, credential=credential, on_bytes=on_bytes, deadline=deadline
            )
        return await self.put_manifest(
            reference,
            package.manifest,
            media_type=package.media_type,
            credential=credential,
            deadline=deadline,
        )

    async def upload(
        self,
        reference: ImageReference,
        layer: Layer,
        *,
        credential: Credential | None,
        on_bytes: OnBytes | None = None,
        deadline: float | None = None,
    ) -> None:
        """Upload a blob that the registry lacks. Raises as `resolve`; `on_bytes` as in `download`."""
        await self._run(
            functools.partial(_upload, layer=layer),
            reference,
            credential=credential,
            what=f"upload to {reference.name}",
            deadline=deadline,
            on_bytes=on_bytes,
            actions="pull,push",
        )

    async def put_manifest(
        self,
        reference: ImageReference,
        data: bytes,
        *,
        media_type: str,
        credential: Credential | None,
        deadline: float | None = None,
    ) -> Digest:
        """Upload a manifest or index under `reference`. Returns its digest. Raises as `resolve`."""
        digest = Digest.of(data)
        announced = await self._run(
            lambda repository: repository.put_manifest(
                reference.version, data=data, media_type=media_type
            ),
            reference,
            credential=credential,
            what=f"upload of the manifest to {reference}",
            deadline=deadline,
            actions="pull,push",
        )
        if announced is not None and announced.algorithm == "sha256" and announced != digest:
            raise ContentRejected(
                f"{reference}: the registry stored the manifest as {announced}, expected {digest}",
                reason=Reason.DIGEST_MISMATCH,
            )
        return digest

    async def get_manifest(
        self, reference: ImageReference, *, credential: Credential | None
    ) -> "ManifestAnswer":
        """The bytes of the manifest or index behind `reference`; they have the announced digest. Raises as `resolve`."""

        def get(repository: "Repository") -> "ManifestAnswer":
            answer = repository.get_manifest(reference.version, accept=mediatypes.ACCEPT)
            expected = reference.digest or answer.announced or Digest.of(answer.data)
            _verify(answer.data, expected, size=None, what=f"manifest of {reference}")
            return answer

        return await self._run(get, reference, credential=credential, what=f"image {reference}")

    async def has_blob(
        self, reference: ImageReference, descriptor: Descriptor, *, credential: Credential | None
    ) -> bool:
        """Whether the repository has the blob. Raises as `resolve`."""
        return await self._run(
            lambda repository: repository.has_blob(descriptor.digest, size=descriptor.size),
            reference,
            credential=credential,
            what=f"upload to {reference.name}",
            actions="pull,push",
        )

    async def list_tags(
        self, reference: ImageReference, *, credential: Credential | None
    ) -> list[str]:
        """The tags of the repository, in the order of the registry. Raises as `resolve`."""
        most = self._limits.listed_tags
        return await self._run(
            lambda repository: repository.list_tags(most=most),
            reference,
            credential=credential,
            what=f"the tags of {reference.name}",
        )

    async def delete(self, reference: ImageReference, *, credential: Credential | None) -> None:
        """Delete the tag or, of a reference with a digest, the manifest. Raises as `resolve`."""
        await self._run(
            lambda repository: repository.delete_manifest(reference.version),
            reference,
            credential=credential,
            what=f"deletion of {reference}",
            actions="delete,pull,push",
        )

    async def check_login(
        self, reference: ImageReference, *, credential: Credential | None
    ) -> None:
        """Try the login at the registry of `reference`. Raises SourceDenied if it is refused, else as `resolve`."""
        await self._run(
            lambda repository: repository.check_login(),
            reference,
            credential=credential,
            what=f"the login to {reference.host}",
            actions="",
        )

    async def _run(
        self,
        operation: "Callable[[Repository], T]",
        reference: ImageReference,
        *,
        credential: Credential | None,
        what: str,
        deadline: float | None = None,
        on_bytes: OnBytes | None = None,
        actions: str = "pull",
    ) -> T:
        """Run `operation` in a transfer thread, with retries for passing failures. `deadline` on `time.monotonic`."""
        limits = self._limits
        end = deadline or time.monotonic() + limits.fetch_timeout
        backoff = Backoff(limits.attempt_backoff, limits.attempt_wait)
        failures = 0
        while True:
            try:
                return await run_transfer(
                    self._pools.transfer,
                    lambda _: self._repositories.use(
                        operation, reference, credential=credential, actions=actions
                    ),
                    what=what,
                    deadline=end - time.monotonic(),
                    limits=limits,
                    on_bytes=on_bytes,
                )
            except SourceUnavailable as error:
                failures += 1
                pause = max(backoff.delay(failures), error.retry_after or 0.0)
                may_pass = (
                    error.reason == Reason.REGISTRY_UNAVAILABLE and pause <= limits.attempt_wait
                )
                if not may_pass or failures >= limits.attempts or time.monotonic() + pause >= end:
                    raise
                _log.info("registry request retried", source=reference.name, reason=error.reason)
            await asyncio.sleep(pause)


def _resolve(
    repository: "Repository", *, reference: ImageReference, limits: Limits
) -> ResolvedImage:
    answer = repository.get_manifest(reference.version, accept=mediatypes.ACCEPT)
    expected = reference.digest or answer.announced or Digest.of(answer.data)
    _verify(answer.data, expected, size=None, what=f"manifest of {reference}")
    document = _parsed(answer, what=f"image {reference}", limits=limits)
    if isinstance(document, Manifest):
        return ResolvedImage(expected, document)
    child, manifest = _module_of(repository, document, reference=reference, limits=limits)
    return ResolvedImage(expected, manifest, document, child)


def _module_of(
    repository: "Repository", index: ImageIndex, *, reference: ImageReference, limits: Limits
) -> tuple[Digest, Manifest]:
    """The image of `index` to use. If no entry is marked as wasm, the manifests of the entries are read for the mark."""
    children = children_by_preference(index)
    if is_marked_wasm(children[0]):
        return _child(repository, children[0], reference=reference, limits=limits)
    first, missing = None, None
    for child in children[: limits.index_searched]:
        try:
            found = _child(repository, child, reference=reference, limits=limits)
        except SourceNotFound as error:  # some mirrors copy only some platforms
            missing = missing or error
            continue
        if is_marked_wasm(found[1]):
            return found
        first = first or found
    if first is None:
        raise missing or SourceNotFound(
            f"image {reference}: the registry has no image of its index"
        )
    return first


def _child(
    repository: "Repository", child: Descriptor, *, reference: ImageReference, limits: Limits
) -> tuple[Digest, Manifest]:
    digest = child.digest
    answer = repository.get_manifest(str(digest), accept=mediatypes.ACCEPT)
    what = f"manifest {digest} in the index of {reference}"
    _verify(answer.data, digest, size=child.size, what=what)
    document = _parsed(answer, what=what, limits=limits)
    if isinstance(document, ImageIndex):
        raise ContentRejected(
            f"{what}: an index in an index is not supported", reason=Reason.MANIFEST_INVALID
        )
    return digest, document


def _parsed(answer: "ManifestAnswer", *, what: str, limits: Limits) -> Manifest | ImageIndex:
    """The parsed document. Raises ContentRejected, naming `what`."""
    try:
        return parse_manifest(answer.data, answer.media_type, limits=limits)
    except ContentRejected as error:
        raise ContentRejected(f"{what}: {error}", reason=error.reason) from error


def _verify(data: bytes, expected: Digest, *, size: int | None, what: str) -> None:
    verifier = DigestVerifier(expected, size=size, what=what)
    verifier.update(data)
    verifier.finish()


def _upload(repository: "Repository", *, layer: Layer) -> None:
    digest = layer.digest
    if not repository.has_blob(digest, size=layer.size):
        repository.put_blob(digest, size=layer.size, content=layer.content)
