"""One object for tests of DownloadTracker: its Pods, and the download logs of the replicas for its module."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api.status import Module
from autowasm.controller.pods.downloadtracker import DownloadTracker, PeerQuery
from autowasm.controller.pods.loadreport import LoadReport
from autowasm.controller.pods.podmatching import Pod
from autowasm.controller.pods.podstatuswriter import PodReport, with_report
from autowasm.kube.resources import ObjectKey
from autowasm.settings import EnvoyFetch, ProofSettings
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import autowasm, digest, record

KEY = ObjectKey("default", "test")
A = digest("a")
NOW = 1_800_000_000.0


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(name: str, address: str, *, started: float = NOW - 5_000) -> Pod:
    uid = name.encode().ljust(16, b"\0")
    return Pod("default", name, uid, (), address, "Running", int(started), True)


@dataclass
class TrackedPods:
    """`seen`: the entries of the one replica, by address."""

    pods: list[Pod] = field(default_factory=lambda: [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")])
    published: float = NOW - 100
    seen: dict[str, dict[str, float]] = field(default_factory=dict)
    up: float = 9_000.0
    downloads: int = 0
    replicas: int = 1
    queries: list[str] = field(default_factory=list)
    touched: int = 0
    status: dict[str, Any] = field(default_factory=dict)
    generation: int = 2
    now: float = NOW
    others: list[str] = field(default_factory=list)
    """Replicas that saw nothing."""

    def keys(self) -> frozenset[ObjectKey]:
        return frozenset({KEY})

    def document(self, key: ObjectKey) -> Mapping[str, Any] | None:
        return {
            "metadata": {"name": key.name, "generation": self.generation},
            "status": self.status,
        }

    def envoyfilter(self, key: ObjectKey) -> Mapping[str, Any] | None:
        document = envoyfilters.render(autowasm(), record(sha256=A), EnvoyFetch())
        document["metadata"]["managedFields"] = [{"time": stamp(self.published)}]
        return document

    def matched(self, key: ObjectKey) -> Iterable[Pod]:
        return self.pods

    def pods_at(self, address: str) -> Iterable[Pod]:
        return [one for one in self.pods if address in one.addresses]

    def is_shared(self, pod: Pod) -> bool:
        return False

    def touch_pods(self, key: ObjectKey) -> None:
        self.touched += 1

    def count(self) -> int:
        return self.replicas + len(self.others)

    async def query(self, path: str) -> list[bytes]:
        self.queries.append(path)
        others = [json.dumps({"instance": name, "up": 9_000.0}).encode() for name in self.others]
        if path == "/seen":
            return [json.dumps({"instance": "a", "downloads": self.downloads}).encode(), *others]
        return [json.dumps({"instance": "a", "up": self.up, "seen": self.seen}).encode(), *others]

    def download(self, address: str, *, age: float) -> None:
        self.downloads += 1
        self.seen[address] = {"ok": age}

    def write(self, found: LoadReport) -> None:
        """As the API server would have it then."""
        module = Module.of(record(sha256=A), stamp(NOW - 200))
        self.status = with_report(
            {"phase": "Synced", "module": msgspec.to_builtins(module)},
            PodReport(found.pods, found.loaded),
        )


def loading(
    tracked: TrackedPods,
    metrics: Metrics | None = None,
    *,
    peer_query: PeerQuery | None = None,
    interval: float = 0.0,
) -> DownloadTracker:
    """`interval` 0: no earlier answer is used again."""
    settings = ProofSettings(interval=interval)
    return DownloadTracker(
        tracked,
        peer_query or PeerQuery(tracked),
        metrics=metrics or Metrics(),
        settings=settings,
        wall=lambda: tracked.now,
    )


async def report_of(found: DownloadTracker) -> LoadReport:
    report = await found.report(KEY)
    assert report is not None
    return report
