"""Simulates a rollout: the time until every sidecar has a module, and the number of downloads that fail meanwhile.

It simulates one replica, the one that got the most downloads by chance; the others finish earlier. The replica shares its
rate equally among all downloads under way (as many TCP connections through one network card do on average). The rate is the
smaller of the card's and the processor's. Proxies end an attempt after its timeout and retry after a random back-off, as
Envoy does. Not a model of the mesh: the time at which a sidecar receives the URL of the module is an input (`spread`).
Invariant: the same input and seed give the same answer.
"""

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass

MB = 1e6
GBIT = 1e9 / 8


@dataclass(frozen=True, slots=True)
class Rollout:
    """The module, the sidecars and the network of a rollout. Seconds, bytes, bytes a second."""

    pods: int
    module: float
    replicas: int = 2
    ports: int = 1
    chains: int = 2
    """Filter chains of a port: each fetches separately. With mutual TLS Istio creates two, one of them for plain text."""
    network: float = 10 * GBIT
    """The outgoing bandwidth of one replica's node."""
    zones: int = 1
    spread: float = 0.0
    """Time over which sidecars receive the URL of the module, evenly distributed."""
    timeout: float = 30.0
    retries: int = 10
    request_cpu: float = 0.000_45
    """Processor seconds for a connection and a request, independent of its size."""
    byte_cpu: float = 0.15 / 1e9

    @property
    def downloads(self) -> int:
        """Number of downloads of all Pods."""
        return self.pods * self.ports * self.chains

    @property
    def rate(self) -> float:
        """Bytes a second of such modules that one replica can send."""
        return self.module / max(
            self.module / self.network, self.request_cpu + self.module * self.byte_cpu
        )

    @property
    def limit(self) -> str:
        """The resource that limits the rate."""
        processor = self.request_cpu + self.module * self.byte_cpu
        return "network" if self.module / self.network >= processor else "processor"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`seconds` until the last download succeeded; `lost`: downloads from that replica that failed in every attempt."""

    seconds: float
    median: float
    retried: int
    lost: int
    concurrent: int
    """Maximum number of concurrent downloads on that replica."""
    downloads: int
    """On that replica."""


def simulate(rollout: Rollout, *, seed: int = 1) -> Outcome:
    """Run it."""
    rng = random.Random(seed)
    return _Replica(rollout, _most_loaded(rollout), rng).run()


def replicas_needed(rollout: Rollout, *, within: float) -> int:
    """The number of replicas that finish all downloads this soon after the last sidecar got its configuration. At least 2, and one per zone."""
    mean = rollout.downloads * rollout.module / (rollout.rate * (within + rollout.spread))
    needed = max(2, rollout.zones, math.ceil(mean))
    while _most_loaded(_with(rollout, needed)) * rollout.module > rollout.rate * (
        within + rollout.spread
    ):
        needed += max(1, needed // 100)
    return needed


def _with(rollout: Rollout, replicas: int) -> Rollout:
    from dataclasses import replace  # noqa: PLC0415

    return replace(rollout, replicas=replicas)


def _most_loaded(rollout: Rollout) -> int:
    """Downloads of the replica that gets the most by chance: connections go to replicas at random."""
    mean = rollout.downloads / rollout.replicas
    if rollout.replicas == 1:
        return rollout.downloads
    return min(rollout.downloads, round(mean + math.sqrt(2 * mean * math.log(rollout.replicas))))


class _Replica:
    """Equal sharing in virtual time: `served` is the number of bytes that each download under way has got since the start.

    All downloads have the same size and timeout, so they complete and time out in the order in which they began.
    """

    def __init__(self, rollout: Rollout, downloads: int, rng: random.Random) -> None:
        self._rollout = rollout
        self._rng = rng
        self._downloads = downloads
        step = rollout.spread / max(downloads, 1)
        self._arrivals = [(number * step, number, 0) for number in range(downloads)]
        # (bytes served at its end, time of its timeout, number, attempt)
        self._running: deque[tuple[float, float, int, int]] = deque()
        self._now = 0.0
        self._served = 0.0

    def run(self) -> Outcome:
        retried = lost = most = 0
        ends: list[float] = []
        while self._arrivals or self._running:
            self._advance()
            while self._running and self._running[0][0] <= self._served:
                self._running.popleft()
                ends.append(self._now)
            while self._running and self._running[0][1] <= self._now:
                _, _, number, attempt = self._running.popleft()
                if attempt >= self._rollout.retries:
                    lost += 1
                    continue
                retried += 1
                again = self._now + self._back_off(attempt)
                heapq.heappush(self._arrivals, (again, number, attempt + 1))
            while self._arrivals and self._arrivals[0][0] <= self._now:
                _, number, attempt = heapq.heappop(self._arrivals)
                end, patience = self._rollout.module, self._rollout.timeout
                self._running.append((self._served + end, self._now + patience, number, attempt))
            most = max(most, len(self._running))
        middle = ends[len(ends) // 2] if ends else math.inf
        last = ends[-1] if ends else math.inf
        return Outcome(last, middle, retried, lost, most, self._downloads)

    def _advance(self) -> None:
        """Advance to the next event. The time is set to exactly that, because a sum of floats may never reach it."""
        until = self._arrivals[0][0] if self._arrivals else math.inf
        if not self._running:
            self._now = max(self._now, until)
            return
        end, deadline, _, _ = self._running[0]
        share = self._rollout.rate / len(self._running)
        until = min(until, deadline)
        done = self._now + (end - self._served) / share
        if done <= until:
            self._now, self._served = max(done, self._now), end
        else:
            self._served += share * (until - self._now)
            self._now = until

    def _back_off(self, attempt: int) -> float:
        """Envoy's back-off: a random time up to 1 s × 2^attempt, at most 5 s (ADR 0006)."""
        return self._rng.uniform(0, min(5.0, 2.0**attempt))
