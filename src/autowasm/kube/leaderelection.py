"""client-go's LeaderElector (`tools/leaderelection/leaderelection.go`) over a coordination.k8s.io/v1 Lease.

Leading is a scope that ends at a time on the loop's monotonic clock. It is not a strict lock: a leader's writes must carry the
resourceVersion that they are based on. Invariants: clocks of machines are never compared, and the wall clock never decides
anything; a leader has renewed within `renew_deadline` seconds, counted from before the request was sent, so it stops leading
before another replica can begin; from that time on `is_leading` is false, even in a process that was frozen, and the body of a
scope is cancelled; an update carries the resourceVersion that was read.
"""

import asyncio
import contextlib
import itertools
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import structlog

from autowasm.kube.client import Document, KubeClient
from autowasm.kube.codec import decode_document
from autowasm.kube.errors import ApiError, Conflict, NotFound
from autowasm.kube.resources import LEASES, ObjectKey

READ_TIMEOUT: Final = 5.0
"""Seconds that `last_renewal` may take: a start must not wait for an API server that is down."""


async def last_renewal(lease: "Lease") -> float | None:
    """When the Lease was last renewed, in seconds since the epoch; None: never, or unknown now."""
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            found = await lease.get(timeout=READ_TIMEOUT)
        return datetime.fromisoformat(found["spec"]["renewTime"]).timestamp()
    except (ApiError, OSError, KeyError, TypeError, ValueError):
        return None


class Lease:
    """The Lease of this name, which may not exist yet. Reads go to the API server, not to an informer."""

    def __init__(self, client: KubeClient, key: ObjectKey) -> None:
        self._client = client
        self._key = key

    async def get(self, *, timeout: float) -> Document:
        """GET. Raises ApiError."""
        path = LEASES.object_path(self._key)
        return await decode_document(await self._client.request("GET", path, timeout=timeout))

    async def create(self, spec: Mapping[str, Any], *, timeout: float) -> Document:
        """POST. Raises AlreadyExists, other ApiError."""
        body = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"namespace": self._key.namespace, "name": self._key.name},
            "spec": dict(spec),
        }
        path = LEASES.path(namespace=self._key.namespace)
        answer = await self._client.request("POST", path, body=body, timeout=timeout)
        return await decode_document(answer)

    async def update(
        self, spec: Mapping[str, Any], *, read: Mapping[str, Any], timeout: float
    ) -> Document:
        """PUT. Raises Conflict, NotFound, other ApiError."""
        path = LEASES.object_path(self._key)
        body = {**read, "spec": dict(spec)}
        answer = await self._client.request("PUT", path, body=body, timeout=timeout)
        return await decode_document(answer)


_log = structlog.get_logger(__name__)

FAILED_RETRY: Final = 5.0
"""Seconds before work that failed unexpectedly starts again."""


class NotLeading(Exception):
    """Another replica leads, or none. Stop the work of the leader."""


class Leadership(Protocol):
    """Whether this replica leads."""

    @property
    def is_leading(self) -> bool:
        """Whether a write may be sent now."""

    def scope(self) -> AbstractAsyncContextManager[None]:
        """Raises NotLeading at entry if this replica does not lead, and from its cancelled body when leading ends."""

    async def acquired(self) -> None:
        """Return when this replica leads."""


async def while_leading(leadership: Leadership, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` while leading; cancel it when leading ends. Work that returns runs again only when leading begins again.

    If work raises, the error is logged and the work starts again; the rest of the process keeps serving.
    """
    while True:
        await leadership.acquired()
        try:
            async with leadership.scope():
                await work()
                await asyncio.Event().wait()
        except NotLeading:
            pass
        except Exception:  # supervised edge: a bug in the leader's work must not stop the work that every replica does
            _log.exception("leader work failed unexpectedly", retry_in=FAILED_RETRY)
            await asyncio.sleep(FAILED_RETRY)


class Tenure:
    """The Leadership of one candidate. It calls `on_change` at each beginning and end; `on_change` must neither wait nor raise.

    A scope raises NotLeading to its caller when leading ends.
    """

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self._on_change = on_change
        self._until = float("-inf")
        self._announced = False
        self._changed = asyncio.Event()
        """Set, and replaced, at each change."""
        self._scopes: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def until(self) -> float:
        """End of leading, in the loop's time."""
        return self._until

    @property
    def is_leading(self) -> bool:
        """Determined by the clock, so it is correct even before any task has run."""
        return self._announced and asyncio.get_running_loop().time() < self._until

    @property
    def has_begun(self) -> bool:
        """True from the beginning until the end is processed, which may be later than the end by the clock."""
        return self._announced

    async def acquired(self) -> None:
        """Return when this replica leads."""
        while not self.is_leading:
            await self._changed.wait()

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """See `Leadership.scope`."""
        if not self.is_leading:
            raise NotLeading("another replica leads")
        deadline = asyncio.timeout_at(self._until if self._until < math.inf else None)
        try:
            async with deadline:
                self._scopes.add(deadline)
                self._idle.clear()
                yield
        except TimeoutError as error:
            if deadline.expired():
                raise NotLeading("leadership ended") from error
            raise
        finally:
            self._scopes.discard(deadline)
            if not self._scopes:
                self._idle.set()

    async def no_scope_left(self) -> None:
        """Return when every scope's body has ended."""
        await self._idle.wait()

    def extend(self, until: float) -> bool:
        """Begin or continue leading until then. False if that time is past."""
        self._move(until)
        if until <= asyncio.get_running_loop().time():
            return False
        if not self._announced:
            self._announce(True)
        return True

    def end(self) -> bool:
        """Stop leading. False if it had not begun."""
        self._move(float("-inf"))
        if self._announced:
            self._announce(False)
            return True
        return False

    def _move(self, until: float) -> None:
        self._until = until
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(max(until, 0.0))

    def _announce(self, leading: bool) -> None:
        self._announced = leading
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._on_change(leading)


class AlwaysLeading(Tenure):
    """The Leadership of a single replica: it leads from the beginning, until its `run` is cancelled."""

    others_led = -math.inf
    """As `LeaderElector.others_led`: never."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self._until = math.inf
        self._announced = True

    async def run(self) -> None:
        """Stop leading permanently when this is cancelled."""
        try:
            await asyncio.Event().wait()
        finally:
            self.end()


JITTER: Final = 1.2
"""client-go's JitterFactor: the renew deadline must be longer than this many retry periods."""
SPREAD: Final = 0.2
"""Candidates try every `retry_period × (1 … 1.2)` seconds, and when the Lease of another expires. client-go spreads by its JitterFactor,
for any number of candidates; wasmer has only a few replicas, and each period of waiting is another period without a leader."""
_RELEASED_DURATION: Final = 1
"""Lease duration of a released Lease, seconds, as client-go writes it: 0 is invalid."""
_RELEASE_TRIES: Final = 2
"""The server may have stored a renewal that the stop cancelled: the second try has read it."""


@dataclass(frozen=True, slots=True)
class LeaseTimings:
    """Seconds; `settings.Election` has the defaults. Raises ValueError for values that allow two leaders, or a long time without one."""

    lease_duration: int
    """Time after the last renewal before another replica takes over. A Lease holds whole seconds."""
    renew_deadline: float
    """Time for which a leader leads without a renewal. The difference is the time to cancel a write in flight."""
    retry_period: float

    def __post_init__(self) -> None:
        if self.renew_deadline >= self.lease_duration:
            raise ValueError("the lease duration must be longer than the renew deadline")
        if not 0 < self.retry_period * JITTER < self.renew_deadline:
            raise ValueError(f"the renew deadline must be longer than {JITTER} retry periods")

    @property
    def call_timeout(self) -> float:
        """The timeout of one request: after a request that hangs, there is time for another try."""
        return self.renew_deadline / 2


class LeaseClient(Protocol):
    """The three calls on the Lease. They raise ApiError: NotFound, AlreadyExists, Conflict, ..."""

    async def get(self, *, timeout: float) -> Document:
        """Read the Lease."""

    async def create(self, spec: Mapping[str, Any], *, timeout: float) -> Document:
        """Create the Lease; returns it as stored."""

    async def update(
        self, spec: Mapping[str, Any], *, read: Mapping[str, Any], timeout: float
    ) -> Document:
        """Replace the Lease that was `read`, by resourceVersion; returns it as stored."""


class LeaderElector:
    """One candidate, and its Leadership. `run` it in a TaskGroup; when cancelled, it releases the Lease after the last scope."""

    def __init__(
        self,
        client: LeaseClient,
        *,
        lease: ObjectKey,
        identity: str,
        timings: LeaseTimings,
        on_change: Callable[[bool], None] = lambda _: None,
        rng: random.Random | None = None,
    ) -> None:
        """`on_change` receives whether this replica leads; it must neither wait nor raise."""
        self.identity = identity
        self._client = client
        self._timings = timings
        self._rng = rng or random.Random()  # noqa: S311 spreads load, hides nothing
        self._log = _log.bind(lease=str(lease), identity=identity)
        self._tenure = Tenure(on_change)
        self._observed: Document | None = None
        self._observed_at = float("-inf")
        self._fresh = False
        """Whether `_observed` can be overwritten without another read."""
        self._last_renewal: datetime | None = None
        self.others_led = float("-inf")
        """When this replica last saw a renewal by another, in the loop's time."""

    @property
    def is_leading(self) -> bool:
        """False at once in a process that was frozen for too long."""
        return self._tenure.is_leading

    @property
    def leader(self) -> str:
        """Holder of the Lease at the last read; empty: none."""
        return str(_spec(self._observed).get("holderIdentity") or "")

    def scope(self) -> AbstractAsyncContextManager[None]:
        """See `Leadership.scope`."""
        return self._tenure.scope()

    async def acquired(self) -> None:
        """Return when this replica leads."""
        await self._tenure.acquired()

    async def run(self) -> None:
        """Acquire the Lease, renew it, and start again, forever."""
        try:
            while True:
                await self._acquire()
                await self._renew()
        finally:
            await self._release()

    async def _acquire(self) -> None:
        while not await self._try_acquire_or_renew():
            delay = self._until_next_try()
            await asyncio.sleep(delay)
        self._log.info("leading")

    def _until_next_try(self) -> float:
        """Seconds: a retry period, or less if another replica's Lease expires earlier."""
        spread = self._timings.retry_period * SPREAD * self._rng.random()
        delay = self._timings.retry_period + spread
        left = self._expires() - _now()
        is_held = self.leader not in {"", self.identity}
        return min(delay, left + spread) if is_held and left > 0 else delay

    async def _renew(self) -> None:
        """Return when leading has ended. Every request and every pause ends at the deadline."""
        last_try = _now()
        while self.is_leading:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._tenure.until):
                    # Measured from request to request: a slow server must not also make renewals rarer.
                    await asyncio.sleep(last_try + self._timings.retry_period - _now())
                    last_try = _now()
                    await self._try_acquire_or_renew()
        self._end("not renewed in time")

    async def _try_acquire_or_renew(self) -> bool:
        """True if this replica holds the Lease for a while from now."""
        try:
            return await self._try()
        except Conflict as error:  # also AlreadyExists
            self._fresh = False
            self._log.debug("lease changed by another client", error=str(error))
        except ApiError as error:
            self._log.warning("lease request failed", leading=self.is_leading, error=str(error))
        return False

    async def _try(self) -> bool:
        if self._fresh and self._tenure.has_begun and self._observed is not None:
            try:
                return await self._write(self._observed)  # one call per renewal
            except (Conflict, NotFound):
                self._fresh = False
        found = await self._read()
        # A deleted Lease still binds this replica, because its holder may not know of the deletion yet.
        if self.leader not in {"", self.identity} and _now() < self._expires():
            self._end("another replica holds the lease")
            return False
        return await self._write(found)

    async def _read(self) -> Document | None:
        try:
            found = await self._client.get(timeout=self._timings.call_timeout)
        except NotFound:
            return None
        self._observe(found)
        return found

    async def _write(self, read: Document | None) -> bool:
        sent = _now()
        spec, timeout = self._renewed(read), self._timings.call_timeout
        if read is None:
            written = await self._client.create(spec, timeout=timeout)
        else:
            written = await self._client.update(spec, read=read, timeout=timeout)
        self._observe(written)
        # A late answer grants nothing.
        return self._tenure.extend(sent + self._timings.renew_deadline)

    def _renewed(self, read: Document | None) -> Document:
        """The spec with this replica as holder. Its times are for people and other tools; no decision uses them."""
        before, now = _spec(read or self._observed), self._time()
        ours = before.get("holderIdentity") == self.identity
        transitions = before.get("leaseTransitions")
        count = transitions if isinstance(transitions, int) else 0
        return {
            **_spec(read),
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._timings.lease_duration,
            "acquireTime": (before.get("acquireTime") or now) if ours else now,
            "renewTime": now,
            "leaseTransitions": count if ours or not before else count + 1,
        }

    def _time(self) -> str:
        """Never equal to the previous renewal: the server does not store an update without a change, so others would see no renewal."""
        now = datetime.now(UTC)
        if now == self._last_renewal:
            now += timedelta(microseconds=1)
        self._last_renewal = now
        return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _observe(self, found: Document) -> None:
        if self._observed is None or _spec(found) != _spec(self._observed):
            self._observed_at = _now()
            if _spec(found).get("holderIdentity") not in {None, "", self.identity}:
                self.others_led = self._observed_at
        self._observed, self._fresh = found, True

    def _expires(self) -> float:
        """When the observed holder expires. Its own duration counts: it may be configured differently."""
        duration = _spec(self._observed).get("leaseDurationSeconds")
        if not isinstance(duration, int) or duration <= 0:
            duration = self._timings.lease_duration
        return self._observed_at + duration

    def _end(self, why: str) -> None:
        if self._tenure.end():
            self._log.warning("no longer leading", reason=why, holder=self.leader)

    async def _release(self) -> None:
        """Release the Lease at once, but after the leader's work has ended. Raises no ApiError."""
        was_leading, until = self.is_leading, self._tenure.until
        self._tenure.end()
        if not was_leading:
            return
        try:
            async with asyncio.timeout_at(until):
                await self._tenure.no_scope_left()
                for tried in itertools.count(1):
                    try:
                        await self._write_release()
                        break
                    except Conflict:
                        self._fresh = False
                        if tried == _RELEASE_TRIES:
                            raise
        except (ApiError, TimeoutError) as error:
            self._log.warning("lease not released", error=f"{type(error).__name__}: {error}")
        else:
            self._log.info("lease released")

    async def _write_release(self) -> None:
        held = self._observed if self._fresh else await self._read()
        if held is None or self.leader != self.identity:
            return
        released = {
            **_spec(held),
            "holderIdentity": "",
            "leaseDurationSeconds": _RELEASED_DURATION,
            "renewTime": self._time(),
        }
        await self._client.update(released, read=held, timeout=self._timings.call_timeout)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _spec(lease: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict((lease or {}).get("spec") or {})
