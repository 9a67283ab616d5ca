"""One Lease of the API server, as `leaderelection.py` asks for it.

Not an informer: whoever elects must read what is stored now. Invariant: an update carries the resourceVersion that was read.

Leading as a scope: until a moment of this loop's monotonic time, which may be moved on or brought to an end.

Not the election (`leaderelection.py`). Invariants: `is_leading` is false from that moment on, whichever task runs first in a
process that was frozen; the body of a scope is cancelled then, and its caller told by NotLeading.

client-go's LeaderElector (`tools/leaderelection/leaderelection.go`) over a coordination.k8s.io/v1 Lease.

Not a lock in the strict sense: what a leader writes must carry the resourceVersion that it read. Invariants: clocks are never
compared between machines, nor is the wall clock ever read to decide (only this loop's monotonic time is); who leads has
renewed within `renew_deadline` seconds, counted from before the request was sent, so it stops leading before anybody else
may begin.
"""

import asyncio
import contextlib
import itertools
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

ASKED_FOR: Final = 5.0
"""Seconds that `last_renewal` may take: a start must not wait for an API server that is down."""


async def last_renewal(lease: "Lease") -> float | None:
    """When it was last renewed, in seconds since the epoch; None: never, or that cannot be learned now."""
    try:
        async with asyncio.timeout(ASKED_FOR):
            found = await lease.get(timeout=ASKED_FOR)
        return datetime.fromisoformat(found["spec"]["renewTime"]).timestamp()
    except (ApiError, OSError, KeyError, TypeError, ValueError):
        return None


class Lease:
    """The Lease of this name; it need not be there yet."""

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
"""Seconds until work that ended in an unexpected error is begun anew."""


class NotLeading(Exception):
    """Somebody else leads, or nobody. Leave the work to whoever does."""


class Leadership(Protocol):
    """What those who lead ask."""

    @property
    def is_leading(self) -> bool:
        """Whether a write may go out now."""

    def scope(self) -> AbstractAsyncContextManager[None]:
        """Raises NotLeading at its beginning, and out of its cancelled body once leading has ended."""

    async def acquired(self) -> None:
        """Return once leading."""


class AlwaysLeading:
    """The Leadership of whoever is alone."""

    is_leading = True

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """Never ends by itself."""
        yield

    async def acquired(self) -> None:
        """At once."""


async def while_leading(leadership: Leadership, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work whenever leading, cancelled in between; `work` that returns is done until leading begins anew.

    Work that raises is told of and begun anew: others of the process, who serve what is published, are left alone.
    """
    while True:
        await leadership.acquired()
        try:
            async with leadership.scope():
                await work()
                await asyncio.Event().wait()
        except NotLeading:
            pass
        except (
            Exception
        ):  # supervised edge: a bug in what a leader does must not stop what every replica does
            _log.exception("work of the leader failed unexpectedly", retry_in=FAILED_RETRY)
            await asyncio.sleep(FAILED_RETRY)


class Tenure:
    """The Leadership of one candidate. `on_change` hears of each beginning and end; it must not wait nor raise."""

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self._on_change = on_change
        self._until = float("-inf")
        self._told = False
        self._changed = asyncio.Event()
        """Set, and replaced, at each change."""
        self._scopes: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def until(self) -> float:
        """Leading lasts until then, in the loop's time."""
        return self._until

    @property
    def is_leading(self) -> bool:
        """The clock decides, not a task that has yet to run."""
        return self._told and asyncio.get_running_loop().time() < self._until

    @property
    def has_begun(self) -> bool:
        """Begun and not ended yet: true, too, while the end by the clock has yet to be noticed."""
        return self._told

    async def acquired(self) -> None:
        """Return once leading."""
        while not self.is_leading:
            await self._changed.wait()

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """See `Leadership.scope`."""
        if not self.is_leading:
            raise NotLeading("another replica leads")
        deadline = asyncio.timeout_at(self._until)
        try:
            async with deadline:
                self._scopes.add(deadline)
                self._idle.clear()
                yield
        except TimeoutError as error:
            if deadline.expired():
                raise NotLeading("leading ended") from error
            raise
        finally:
            self._scopes.discard(deadline)
            if not self._scopes:
                self._idle.set()

    async def no_scope_left(self) -> None:
        """Return once every body has ended."""
        await self._idle.wait()

    def extend(self, until: float) -> bool:
        """Lead, or go on leading, until then. False if that is past already."""
        self._move(until)
        if until <= asyncio.get_running_loop().time():
            return False
        if not self._told:
            self._tell(True)
        return True

    def end(self) -> bool:
        """Lead no more. False if that was so before."""
        self._move(float("-inf"))
        if self._told:
            self._tell(False)
            return True
        return False

    def _move(self, until: float) -> None:
        self._until = until
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(max(until, 0.0))

    def _tell(self, leading: bool) -> None:
        self._told = leading
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._on_change(leading)


JITTER: Final = 1.2
"""client-go's JitterFactor: those who want to lead ask every `retry_period × (1 … 2.2)` seconds."""
_RELEASED_DURATION: Final = 1
"""Seconds that a released Lease is said to last, as client-go writes it: 0 is not valid."""
_RELEASE_TRIES: Final = 2
"""A renewal that was cut by the stop may have been stored: the second try has read it."""


@dataclass(frozen=True, slots=True)
class LeaseTimings:
    """Seconds; client-go's defaults. Raises ValueError where they would allow two leaders, or none for long."""

    lease_duration: int = 15
    """How long after its last renewal a leader is waited for. A Lease holds whole seconds."""
    renew_deadline: float = 10.0
    """How long a leader leads without a renewal. The difference is what a write in flight has to be cancelled in."""
    retry_period: float = 2.0

    def __post_init__(self) -> None:
        if self.renew_deadline >= self.lease_duration:
            raise ValueError("the lease duration must be longer than the renew deadline")
        if not 0 < self.retry_period * JITTER < self.renew_deadline:
            raise ValueError(f"the renew deadline must be longer than {JITTER} retry periods")

    @property
    def call_timeout(self) -> float:
        """One request: a server that hangs once leaves time for another try."""
        return self.renew_deadline / 2


class LeaseClient(Protocol):
    """The three calls. They raise ApiError: NotFound, AlreadyExists, Conflict, ..."""

    async def get(self, *, timeout: float) -> Document:
        """The Lease."""

    async def create(self, spec: Mapping[str, Any], *, timeout: float) -> Document:
        """A new one; returned as stored."""

    async def update(
        self, spec: Mapping[str, Any], *, read: Mapping[str, Any], timeout: float
    ) -> Document:
        """In place of the one that was `read`, by resourceVersion; returned as stored."""


class LeaderElector:
    """One candidate, and its Leadership. `run` it in a TaskGroup; cancelled, it releases once no scope is left."""

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
        """`on_change` hears whether we lead, and must not wait nor raise."""
        self.identity = identity
        self._client = client
        self._timings = timings
        self._rng = rng or random.Random()  # noqa: S311 spreads load, hides nothing
        self._log = _log.bind(lease=str(lease), identity=identity)
        self._tenure = Tenure(on_change)
        self._observed: Document | None = None
        self._observed_at = float("-inf")
        self._fresh = False
        """Whether `_observed` can be written over without reading it again."""
        self._last_renewal: datetime | None = None
        self.others_led = float("-inf")
        """When we last saw that another had renewed the Lease, in the loop's time."""

    @property
    def is_leading(self) -> bool:
        """False at once in a process that was frozen for too long."""
        return self._tenure.is_leading

    @property
    def leader(self) -> str:
        """Who held the Lease when it was last seen; empty: nobody."""
        return str(_spec(self._observed).get("holderIdentity") or "")

    def scope(self) -> AbstractAsyncContextManager[None]:
        """See `Leadership.scope`."""
        return self._tenure.scope()

    async def acquired(self) -> None:
        """Return once leading."""
        await self._tenure.acquired()

    async def run(self) -> None:
        """Try to lead, lead, and try again, for ever."""
        try:
            while True:
                await self._acquire()
                await self._renew()
        finally:
            await self._release()

    async def _acquire(self) -> None:
        while not await self._try_acquire_or_renew():
            delay = self._timings.retry_period * (1.0 + JITTER * self._rng.random())
            await asyncio.sleep(delay)
        self._log.info("leading")

    async def _renew(self) -> None:
        """Return once leading has ended. Every request, and every pause, ends with the deadline."""
        asked = _now()
        while self.is_leading:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._tenure.until):
                    # From request to request: a slow server must not make renewals rarer as well as late.
                    await asyncio.sleep(asked + self._timings.retry_period - _now())
                    asked = _now()
                    await self._try_acquire_or_renew()
        self._end("not renewed in time")

    async def _try_acquire_or_renew(self) -> bool:
        """True if the Lease is ours for a while from now."""
        try:
            return await self._try()
        except Conflict as error:  # AlreadyExists is one
            self._fresh = False
            self._log.debug("lease changed by another", error=str(error))
        except ApiError as error:
            self._log.warning("lease not reached", leading=self.is_leading, error=str(error))
        return False

    async def _try(self) -> bool:
        if self._fresh and self._tenure.has_begun and self._observed is not None:
            try:
                return await self._write(self._observed)  # one call a renewal
            except (Conflict, NotFound):
                self._fresh = False
        found = await self._read()
        # One that was deleted still binds us: who held it may not know yet.
        if self.leader not in {"", self.identity} and _now() < self._expires():
            self._end("another holds the lease")
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
        # An answer that comes too late grants nothing.
        return self._tenure.extend(sent + self._timings.renew_deadline)

    def _renewed(self, read: Document | None) -> Document:
        """The spec that makes it ours. Times are for people and other tools; we decide by none of them."""
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
        """Never that of the renewal before: an update that changes nothing is not stored, and others would see none."""
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
        """When the holder that we saw last may be given up. Its own duration counts: it may be configured otherwise."""
        duration = _spec(self._observed).get("leaseDurationSeconds")
        if not isinstance(duration, int) or duration <= 0:
            duration = self._timings.lease_duration
        return self._observed_at + duration

    def _end(self, why: str) -> None:
        if self._tenure.end():
            self._log.warning("no longer leading", reason=why, holder=self.leader)

    async def _release(self) -> None:
        """Let another lead at once, but not before our own work has ended. Raises no ApiError."""
        was_leading, until = self.is_leading, self._tenure.until
        self._tenure.end()
        if not was_leading:
            return
        try:
            async with asyncio.timeout_at(until):
                await self._tenure.no_scope_left()
                for tried in itertools.count(1):
                    try:
                        await self._give_up()
                        break
                    except Conflict:
                        self._fresh = False
                        if tried == _RELEASE_TRIES:
                            raise
        except (ApiError, TimeoutError) as error:
            self._log.warning("lease not released", error=f"{type(error).__name__}: {error}")
        else:
            self._log.info("lease released")

    async def _give_up(self) -> None:
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
