"""DownloadTracker: follows which Pods download a published module, while leading, and returns load reports.

`loadreport.py` decides, `podstatuswriter.py` writes within its budget. A replica that restarts loses its download log, so a new leader
starts from the status: Pods that it counts as fetched and does not name as missing are taken over. Invariants: only the leader
checks; replicas are asked about a module only after a new download or error, about a bounded number of modules per check, and
not again right after the resender has asked.

PeerQuery queries the download logs of all replicas, for the tracker and the resender. Invariants: `query` always asks the replicas,
because the resender acts on it; cached answers are bounded in number and age.
"""

import asyncio
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec
import structlog
from cachetools import FIFOCache
from msgspec import UNSET

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import status as statuses
from autowasm.api.status import ConditionType, Status
from autowasm.controller.pods.loadreport import (
    NEVER,
    STEP,
    DownloadEvidence,
    LoadEvidence,
    LoadReport,
    MissingReason,
    decode_object,
    epoch,
    load_report,
    number,
)
from autowasm.controller.pods.podmatching import Pod, everyone, has_target, in_steps
from autowasm.controller.pods.resend import changed_at
from autowasm.kube.leaderelection import Leadership, while_leading
from autowasm.kube.resources import ObjectKey
from autowasm.settings import ProofSettings
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

Document = Mapping[str, Any]
_MAX_QUERIES: Final = 32
"""Queries with cached answers; an answer may have several megabytes."""
_STATES = ("Fetched", *(why.value for why in MissingReason))
_MOVING = frozenset(
    {MissingReason.WAITING.value, MissingReason.NOT_READY.value, MissingReason.SHARED_ADDRESS.value}
)
"""States that end without an event, and maybe without a download."""
_MAX_GONE: Final = 16
"""Replicas that are gone are kept in case they answer again; the newest counts."""


class PeerAnswers(Protocol):
    """All replicas (`server/downloadlog.py`)."""

    async def query(self, path: str) -> list[bytes]:
        """`/seen` or `/seen/<sha256>` of each replica."""

    def count(self) -> int:
        """Number of replicas that should answer."""


class PeerQuery:
    """One per process: the resender and the load report share it."""

    def __init__(self, replicas: PeerAnswers) -> None:
        self._replicas = replicas
        self._kept: FIFOCache[str, tuple[float, list[bytes], bool]] = FIFOCache(_MAX_QUERIES)

    async def query(self, path: str) -> list[bytes]:
        """The current answers."""
        return (await self._fresh(path))[1]

    async def recent(self, path: str, *, within: float) -> tuple[float, list[bytes], bool]:
        """Time of the query (the loop's time), answers, and whether all replicas answered; at most `within` seconds old."""
        kept = self._kept.get(path)
        if kept is not None and asyncio.get_running_loop().time() - kept[0] <= within:
            return kept
        return await self._fresh(path)

    async def _fresh(self, path: str) -> tuple[float, list[bytes], bool]:
        begun = asyncio.get_running_loop().time()
        wanted = self._replicas.count()
        documents = await self._replicas.query(path)
        kept = (begun, documents, len(documents) >= wanted)
        self._kept[path] = kept
        return kept


class Workloads(Protocol):
    """Published modules and the Pods that should have them."""

    def keys(self) -> frozenset[ObjectKey]:
        """All AutoWasms."""

    def document(self, key: ObjectKey) -> Document | None:
        """The AutoWasm."""

    def envoyfilter(self, key: ObjectKey) -> Document | None:
        """Our live EnvoyFilter."""

    def matched(self, key: ObjectKey) -> Iterable[Pod]:
        """The Pods that it selects and that have not ended. Pods may change during the iteration."""

    def pods_at(self, address: str) -> Iterable[Pod]:
        """The Pods with this address."""

    def is_shared(self, pod: Pod) -> bool:
        """Whether another Pod has an address of this one."""

    def touch_pods(self, key: ObjectKey) -> None:
        """The report on its Pods may have changed."""


@dataclass(frozen=True, slots=True)
class _Downloads:
    """The state of one object at the last check."""

    sha256: str
    published: float
    states: Mapping[str, int]
    is_open: bool


class DownloadTracker:
    """One per process. Pass `report` to the Workloads, and `run` it."""

    def __init__(
        self,
        workloads: Workloads,
        peer_query: PeerQuery,
        *,
        metrics: Metrics,
        settings: ProofSettings,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._workloads = workloads
        self._peer_query = peer_query
        self._metrics = metrics
        self._settings = settings
        self._wall = wall
        self._downloads: dict[str, DownloadEvidence] = {}
        self._states: dict[ObjectKey, _Downloads] = {}
        self._counted: dict[str, tuple[float, float]] = {}
        """By replica: downloads and errors at the last check."""
        self._gone: FIFOCache[str, float] = FIFOCache(_MAX_GONE)
        """Replicas that no longer answer, to when that was seen: their last downloads are lost."""
        self._queue: list[str] = []
        """Modules still to ask about."""
        self._news = float("-inf")
        """Time of the last query with changed counts, in the loop's time."""

    async def report(self, key: ObjectKey) -> LoadReport | None:
        """The load report; None while nothing is published. Pods must be listed before."""
        return await in_steps(self._report(key))

    def _report(self, key: ObjectKey) -> Generator[None, None, LoadReport | None]:
        live, document = self._workloads.envoyfilter(key), self._workloads.document(key)
        records = envoyfilters.records_of(live) if live is not None else ()
        if live is None or document is None or not records:
            self._forget(key)
            return None
        record = records[0]
        pods = yield from _listed(self._workloads.matched(key))
        now, previous = self._wall(), statuses.read(document.get("status"))
        generation = (document.get("metadata") or {}).get("generation")
        downloads = self._downloads.setdefault(record.sha256, DownloadEvidence())
        known = self._states.get(key)
        reported = previous.condition(ConditionType.LOADED)
        # A status of another generation may be about other Pods: the selector may have changed.
        fits = reported is not None and reported.observed_generation == generation
        # Of Pods that keep the older module in this step of a staged rollout, no download is expected.
        is_new = has_target(document) if len(records) > 1 else everyone
        others = {pod.uid for pod in pods if not is_new(pod)} if is_new is not everyone else set()
        fits = fits and is_new is everyone
        if fits and (known is None or known.sha256 != record.sha256):
            yield from downloads.believe(previous, record.sha256, pods)
        yield from downloads.place(pods, is_shared=self._workloads.is_shared)
        module = previous.module
        dated = module is not UNSET and module.sha256 == record.sha256
        published = changed_at(live)
        evidence = LoadEvidence(
            fetched=downloads.fetched.keys() | others if others else downloads.fetched.keys(),
            refused=downloads.refused,
            is_shared=self._workloads.is_shared,
            watched_since=max(downloads.watched_since, *self._gone.values(), 0.0),
            strangers=max(downloads.strangers.values(), default=0.0),
            known=downloads.learned if downloads.is_behind and downloads.queried else now,
            published=published,
            first=epoch(module.fetched_at) if dated and module is not UNSET else published,
        )
        settings = self._settings
        found = yield from load_report(
            pods,
            evidence,
            generation=generation if isinstance(generation, int) else 0,
            now=now,
            grace=settings.grace,
            names=settings.max_named,
        )
        # A check may have dropped it between two steps, because no object used it yet.
        self._downloads.setdefault(record.sha256, downloads)
        self._remember(
            key, _Downloads(record.sha256, published, found.states, _is_open(found)), pods
        )
        kept = self._kept(found, downloads, dated=dated, previous=previous)
        if kept is not None:
            return kept
        known_pods = previous.pods
        same = known_pods is not UNSET and found.pods.same(known_pods.without_running())
        stamp = known_pods.time if same and known_pods is not UNSET else _stamp(now)
        pods_ = msgspec.structs.replace(found.pods, time=stamp)
        return LoadReport(pods_, found.loaded, found.states)

    @staticmethod
    def _kept(
        found: LoadReport, downloads: DownloadEvidence, *, dated: bool, previous: Status
    ) -> LoadReport | None:
        """The previous leader's report on the same Pods, until replicas were asked."""
        reported, loaded = previous.pods, previous.condition(ConditionType.LOADED)
        if downloads.queried or not dated or reported is UNSET or loaded is None:
            return None
        if MissingReason.NOT_KNOWN.value not in found.states:
            return None
        if (reported.matched, reported.injected) != (found.pods.matched, found.pods.injected):
            return None
        return LoadReport(reported, loaded, found.states, is_kept=True)

    def downloaded_at(self, sha256: str, uid: bytes) -> float:
        """When this Pod downloaded the module, seconds since the epoch; 0: not known, or before this leader."""
        downloads = self._downloads.get(sha256)
        return downloads.fetched.get(uid, 0.0) if downloads is not None else 0.0

    async def run(self, leadership: Leadership) -> None:
        """Check every `interval` seconds while leading, forever."""
        await while_leading(leadership, self._lead)

    async def _lead(self) -> None:
        self._downloads.clear()
        self._states.clear()
        self._counted.clear()
        self._gone.clear()
        try:
            while True:
                await asyncio.sleep(self._settings.interval)
                await self.check()
        finally:
            self._states.clear()
            self._measure()

    async def check(self) -> None:
        """Query the replicas for changes, and schedule the reports that may change."""
        keys = self._workloads.keys()
        for gone in self._states.keys() - keys:
            self._forget(gone)
        open_ = {key: state for key, state in self._states.items() if state.is_open}
        wanted = {state.sha256 for state in open_.values()}
        if await self._is_news():
            for downloads in self._downloads.values():  # any module: a Pod may appear late
                downloads.is_behind = True
        due = {sha256 for sha256 in wanted if self._needs_query(self._downloads[sha256])}
        self._queue += sorted(due.difference(self._queue))
        queue, self._queue = self._queue, self._queue[self._settings.questions :]
        learned = set()
        for sha256 in sorted(set(queue[: self._settings.questions]) & wanted):
            with self._isolated(digest=sha256):
                await self._learn(sha256)
                learned.add(sha256)
        for key, state in open_.items():
            with self._isolated(key=str(key)):
                is_news = state.sha256 in learned
                if is_news or not _MOVING.isdisjoint(state.states):
                    self._workloads.touch_pods(key)
                if is_news:
                    await self.report(key)  # for the metrics: the status may wait
            await asyncio.sleep(0)
        used = {state.sha256 for state in self._states.values()}
        for unused in self._downloads.keys() - used:
            del self._downloads[unused]
        self._measure()

    @contextmanager
    def _isolated(self, **about: str) -> Iterator[None]:
        try:
            yield
        except Exception:  # supervised edge: one failure must not stop the others
            _log.exception("load report failed unexpectedly", **about)
            self._metrics.unexpected_errors.labels("proof_of_load").inc()

    @staticmethod
    def _needs_query(downloads: DownloadEvidence) -> bool:
        return downloads.is_behind or not downloads.queried or downloads.watched_since == NEVER

    async def _is_news(self) -> bool:
        queried_at, documents, _ = await self._peer_query.recent(
            "/seen", within=self._settings.interval
        )
        counted = {}
        for document in documents:
            found = decode_object(document)
            if isinstance(instance := found.get("instance"), str):
                counted[instance] = number(found.get("downloads")), number(found.get("errors"))
        before, self._counted = self._counted, counted
        for back in counted.keys() & self._gone.keys():
            del self._gone[back]
        self._gone.update(dict.fromkeys(before.keys() - counted.keys(), self._wall()))
        if counted == before:
            return False
        self._news = queried_at
        return True

    async def _learn(self, sha256: str) -> None:
        since_news = asyncio.get_running_loop().time() - self._news
        queried_at, documents, complete = await self._peer_query.recent(
            f"/seen/{sha256}", within=min(self._settings.interval / 2, since_news)
        )
        learning = self._downloads.setdefault(sha256, DownloadEvidence()).learn(
            documents,
            now=self._wall() - (asyncio.get_running_loop().time() - queried_at),
            complete=complete,
            pods_at=self._workloads.pods_at,
        )
        for _ in learning:
            await asyncio.sleep(0)

    def _remember(self, key: ObjectKey, state: _Downloads, pods: list[Pod]) -> None:
        """Store the state of an object; measure a rollout that ends while we lead."""
        before, self._states[key] = self._states.get(key), state
        if before is None or not before.is_open or before.sha256 != state.sha256 or state.is_open:
            return
        fetched = self._downloads[state.sha256].fetched
        last = max((fetched.get(pod.uid, 0.0) for pod in pods), default=0.0)
        started = max((pod.started for pod in pods), default=0)
        if last > state.published >= started:
            self._metrics.rollout_seconds.observe(last - state.published)

    def _forget(self, key: ObjectKey) -> None:
        self._states.pop(key, None)

    def _measure(self) -> None:
        totals = dict.fromkeys(_STATES, 0)
        for state in self._states.values():
            for name, count in state.states.items():
                totals[name] += count
        for name, count in totals.items():
            self._metrics.rollout_pods.labels(name).set(count)
        unfinished = sum(state.is_open for state in self._states.values())
        self._metrics.rollout_unfinished.set(unfinished)


def _listed(pods: Iterable[Pod]) -> Generator[None, None, list[Pod]]:
    found: list[Pod] = []
    for pod in pods:
        found.append(pod)
        if len(found) % STEP == 0:
            yield
    return found


def _is_open(found: LoadReport) -> bool:
    """Whether some sidecar is not known to have the module. A Pod without a sidecar does not count."""
    return any(name not in {"Fetched", MissingReason.NOT_INJECTED.value} for name in found.states)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
