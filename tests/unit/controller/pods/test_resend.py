import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api.status import MissingPod, Module, Pods, Status
from autowasm.controller.pods.podmatching import Pod
from autowasm.controller.pods.resend import Outage, Resender
from autowasm.kube.leaderelection import AlwaysLeading, Tenure
from autowasm.kube.resources import ObjectKey
from autowasm.settings import EnvoyFetch, ResendSettings
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import autowasm, digest, record

KEY = ObjectKey("default", "test")
A, B = digest("a"), digest("b")
NOW = 1_800_000_000.0
QUICK = ResendSettings(pace=0.0, given_up=30.0, outage=10.0, settle=60.0, pause=600.0)
POD = Pod("default", "p", b"0" * 16, (("app", "x"),), "10.0.0.1", "Running", int(NOW) - 5000, True)


def live(*, sha256: str = A, resend: int = 0, changed: float = NOW - 9000) -> dict[str, Any]:
    document = envoyfilters.render(autowasm(), record(sha256=sha256), EnvoyFetch(), resend=resend)
    stamp = datetime.fromtimestamp(changed, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document["metadata"]["managedFields"] = [{"time": stamp}]
    return document


@dataclass
class ResentDownloads:
    """One object, its Pods, and the download logs by digest and address."""

    envoyfilter_: dict[str, Any] = field(default_factory=live)
    pods: list[Pod] = field(default_factory=lambda: [POD])
    selected: bool = True
    seen: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    errors: int = 0
    up: float = 5.0
    queries: list[str] = field(default_factory=list)
    requeued: list[ObjectKey] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)

    def keys(self) -> frozenset[ObjectKey]:
        return frozenset({KEY})

    def document(self, key: ObjectKey) -> Mapping[str, Any] | None:
        return {"metadata": {"name": key.name}, "status": self.status}

    def envoyfilter(self, key: ObjectKey) -> Mapping[str, Any] | None:
        return self.envoyfilter_

    def sidecars(self) -> Iterator[Pod]:
        return iter(self.pods)

    def selects(self, key: ObjectKey, pod: Pod) -> bool:
        return self.selected

    async def query(self, path: str) -> list[bytes]:
        self.queries.append(path)
        if path == "/seen":
            return [json.dumps({"instance": "a", "up": self.up, "errors": self.errors}).encode()]
        return [json.dumps({"seen": self.seen.get(path.removeprefix("/seen/"), {})}).encode(), b"x"]

    def refuse(self, age: float, *, address: str = "10.0.0.1", **more: float) -> None:
        self.errors += 1
        self.seen[A] = {address: {"error": age, **more}}


def resender(
    resends: ResentDownloads,
    *,
    outage: Outage | None = None,
    stored: bool = True,
    settings: ResendSettings = QUICK,
    others_led: float = float("-inf"),
    metrics: Metrics | None = None,
) -> Resender:
    """`others_led`: seconds from now."""
    return Resender(
        resends,
        resends,
        is_stored=lambda _: stored,
        requeue=resends.requeued.append,
        record_event=lambda _about, _kind, reason, message: resends.events.append(
            f"{reason}: {message}"
        ),
        metrics=metrics or Metrics(),
        settings=settings,
        outage=outage,
        others_led=lambda: asyncio.get_running_loop().time() + others_led,
        wall=lambda: NOW,
    )


async def test_sidecar_without_requests_since_its_error_gets_one_resend() -> None:
    resends = ResentDownloads()
    resends.refuse(40)
    resend = resender(resends)
    await resend.check()
    assert resends.requeued == [KEY]
    assert resend.wanted(KEY, resends.envoyfilter_, A) == 1
    assert "r=1" in resends.events[0]
    resends.envoyfilter_ = live(resend=1)
    await resend.check()
    await resend.check()
    assert resends.requeued == [KEY]
    assert resend.wanted(KEY, resends.envoyfilter_, A) == 1
    assert resend.wanted(KEY, resends.envoyfilter_, B) == 0, "a new module begins without"


async def test_an_odd_object_does_not_stop_the_others() -> None:
    first = ObjectKey("default", "a")

    class Odd(ResentDownloads):
        def keys(self) -> frozenset[ObjectKey]:
            return frozenset({first, KEY})

        def selects(self, key: ObjectKey, pod: Pod) -> bool:
            if key == first:
                raise RuntimeError("odd")
            return True

    resends = Odd()
    resends.refuse(40)
    resend = resender(resends)
    with structlog.testing.capture_logs() as logs:
        await resend.check()
        await resend.check()
    assert resends.requeued == [KEY]
    odd = [log["key"] for log in logs if log["log_level"] == "error"]
    assert odd == [str(first), str(first)], "it is looked at again"


async def test_an_envoyfilter_that_cannot_be_read_does_not_stop_the_others() -> None:
    first, metrics = ObjectKey("default", "a"), Metrics()

    class Odd(ResentDownloads):
        def keys(self) -> frozenset[ObjectKey]:
            return frozenset({first, KEY})

        def envoyfilter(self, key: ObjectKey) -> Mapping[str, Any] | None:
            if key == first:
                raise RuntimeError("odd")
            return self.envoyfilter_

    resends = Odd()
    resends.refuse(40)
    with structlog.testing.capture_logs() as logs:
        await resender(resends, metrics=metrics).check()
    assert resends.requeued == [KEY]
    (failed,) = [log for log in logs if log["log_level"] == "error"]
    assert (failed["key"], failed["exc_info"]) == (str(first), True)
    count = metrics.registry.get_sample_value
    assert count("autowasm_unexpected_errors_total", {"work": "resend"}) == 1


async def test_pending_resends_are_forgotten_when_leadership_ends() -> None:
    """Another replica leads then, and its publication may begin without a count."""
    resends = ResentDownloads()
    resends.refuse(40)
    leadership = Tenure(lambda _: None)
    resend = resender(resends)
    await resend.check()
    assert resend.wanted(KEY, live(), A) == 1
    leadership.extend(asyncio.get_running_loop().time() + 60)
    running = asyncio.create_task(resend.run(leadership))
    await asyncio.sleep(0)
    leadership.end()
    async with asyncio.timeout(30):
        while resend.wanted(KEY, live(), A):
            await asyncio.sleep(0)
    running.cancel()


async def test_resend_count_of_a_deleted_object_is_forgotten() -> None:
    resends = ResentDownloads()
    resends.refuse(40)
    resend = resender(resends)
    await resend.check()
    resends.keys = lambda: frozenset()  # type: ignore[method-assign]
    resends.refuse(40)
    await resend.check()
    assert resend.wanted(KEY, live(), A) == 0, "one of the same name begins without a count"


async def test_a_large_mesh_is_looked_at_in_turns() -> None:
    """10 000 sidecars with an error as their last answer: finding them, and that each error is too recent, takes a while."""
    addresses = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(10_000)]
    pods = [
        Pod("default", at, at.encode().ljust(16), (), at, "Running", int(NOW) - 60, True)
        for at in addresses
    ]
    told = json.dumps(
        {"seen": {at: {"error": 5, "status": 503} for at in addresses}}, separators=(",", ":")
    )

    class Large(ResentDownloads):
        async def query(self, path: str) -> list[bytes]:
            return await super().query(path) if path == "/seen" else [told.encode()]

    resends = Large(pods=pods, errors=1)
    resend = resender(resends)
    checking = asyncio.ensure_future(resend.check())
    iterations = 0
    while not checking.done():
        await asyncio.sleep(0)
        iterations += 1
    await checking
    assert resend._open, "all of them were looked at"
    assert iterations >= 3 * len(pods) / 500
    assert resends.requeued == []


async def test_count_goes_on_from_the_live_envoyfilter() -> None:
    resends = ResentDownloads(envoyfilter_=live(resend=7))
    resends.refuse(40)
    resend = resender(resends)
    assert resend.wanted(KEY, resends.envoyfilter_, A) == 7
    await resend.check()
    assert resend.wanted(KEY, resends.envoyfilter_, A) == 8


async def test_changes_in_the_second_an_outage_began_cause_a_resend() -> None:
    # The API server truncates times to seconds: by their timestamps, both are before the outage.
    outage = Outage(NOW - 200 + 0.7, NOW - 100)
    pod, changed = (
        ResentDownloads(pods=[started(NOW - 200)]),
        ResentDownloads(envoyfilter_=live(changed=NOW - 200)),
    )
    for resends in (pod, changed):
        await resender(resends, outage=outage).check()
        assert resends.requeued == [KEY]


async def test_changes_in_the_second_before_an_outage_cause_no_resend() -> None:
    outage = Outage(NOW - 200 + 0.7, NOW - 100)
    pod, changed = (
        ResentDownloads(pods=[started(NOW - 201)]),
        ResentDownloads(envoyfilter_=live(changed=NOW - 201)),
    )
    for resends in (pod, changed):
        await resender(resends, outage=outage).check()
        assert resends.requeued == []


@pytest.mark.parametrize(
    "spare",
    [
        "retries",
        "came back",
        "not matched",
        "no sidecar there",
        "another pod had the address",
        "not stored",
        "no error",
    ],
)
async def test_nothing_is_healed_without_evidence(spare: str) -> None:
    resends = ResentDownloads()
    resends.refuse(40)
    if spare == "retries":
        resends.refuse(20)
    if spare == "came back":
        resends.refuse(40, ok=10)
    if spare == "not matched":
        resends.selected = False
    if spare == "no sidecar there":
        resends.refuse(40, address="10.0.0.9")
    if spare == "another pod had the address":
        resends.pods = [started(NOW - 5)]
    if spare == "no error":
        resends.errors, resends.seen = 0, {}
    resend = resender(resends, stored=spare != "not stored")
    await resend.check()
    assert resends.requeued == []
    assert resend.wanted(KEY, resends.envoyfilter_, A) == 0


async def test_error_that_is_too_young_is_looked_at_again() -> None:
    resends = ResentDownloads()
    resends.refuse(20)
    resend = resender(resends)
    await resend.check()
    assert resends.requeued == []
    resends.seen[A]["10.0.0.1"]["error"] = 31  # no further error was given
    await resend.check()
    assert resends.requeued == [KEY]


async def test_replicas_are_asked_about_modules_only_if_there_was_an_error() -> None:
    resends = ResentDownloads()
    resend = resender(resends)
    await resend.check()
    await resend.check()
    assert resends.queries == ["/seen", "/seen"]


OUTAGE = Outage(NOW - 300, NOW - 100)


def started(at: float) -> Pod:
    return Pod("default", "p", b"0" * 16, (), "10.0.0.1", "Running", int(at), True)


async def test_pod_that_started_during_an_outage_and_never_downloaded_is_healed() -> None:
    resends = ResentDownloads(pods=[started(NOW - 200)])
    await resender(resends, outage=OUTAGE).check()
    assert resends.requeued == [KEY]


async def test_envoyfilter_that_changed_during_an_outage_is_healed() -> None:
    resends = ResentDownloads(envoyfilter_=live(changed=NOW - 200))
    await resender(resends, outage=OUTAGE).check()
    assert resends.requeued == [KEY]


@pytest.mark.parametrize(
    "spare",
    [
        "downloaded",
        "downloaded by its other address",
        "older",
        "other replica",
        "too early",
        "short",
    ],
)
async def test_outage_without_a_failed_download_causes_no_resend(spare: str) -> None:
    outage = OUTAGE
    resends = ResentDownloads(pods=[started(NOW - 200)])
    if spare == "downloaded":
        resends.seen[A] = {"10.0.0.1": {"ok": 50}}
    if spare == "downloaded by its other address":
        resends.pods = [msgspec.structs.replace(resends.pods[0], ips="10.0.0.1,fd00::1")]
        resends.seen[A] = {"fd00::1": {"ok": 50}}
    if spare == "older":
        resends.pods = [POD]
    if spare == "other replica":
        resends.up = 5000
    if spare == "too early":
        outage = Outage(NOW - 300, NOW - 10)
    if spare == "short":
        outage = Outage(NOW - 205, NOW - 198)
    await resender(resends, outage=outage).check()
    assert resends.requeued == []


async def test_outage_that_the_leader_before_us_healed_is_not_healed_again() -> None:
    # The download may be known to that leader alone, which is gone.
    resends = ResentDownloads(
        pods=[started(NOW - 200)], envoyfilter_=live(resend=1, changed=NOW - 60)
    )
    resend = resender(resends, outage=OUTAGE)
    await resend.check()
    assert resends.requeued == []
    assert resend.wanted(KEY, resends.envoyfilter_, A) == 1


async def test_error_before_the_leader_before_us_healed_it_is_no_evidence() -> None:
    resends = ResentDownloads(envoyfilter_=live(resend=1, changed=NOW - 60))
    resends.refuse(100)
    await resender(resends).check()
    assert resends.requeued == []
    resends.refuse(40)  # and one since
    await resender(resends).check()
    assert resends.requeued == [KEY]


@pytest.mark.parametrize(("written", "resent"), [(50, False), (150, True)])
async def test_error_of_a_pod_that_has_it_as_the_status_says_is_no_evidence(
    written: float, resent: bool
) -> None:
    """`written`: seconds since the status was written."""
    resends = ResentDownloads()
    resends.refuse(100)
    stamp = datetime.fromtimestamp(NOW - written, UTC).isoformat()
    resends.status = Status(
        module=Module.of(record(sha256=A), stamp), pods=Pods(1, 1, fetched=1, time=stamp)
    ).to_dict()
    await resender(resends).check()
    assert resends.requeued == ([KEY] if resent else [])


async def test_outage_is_healed_after_one_that_was_healed_before_it() -> None:
    resends = ResentDownloads(pods=[started(NOW - 200)], envoyfilter_=live(resend=1))
    resend = resender(resends, outage=OUTAGE)
    await resend.check()
    assert resend.wanted(KEY, resends.envoyfilter_, A) == 2


@pytest.mark.parametrize("missing", [(), ("p",)])
async def test_pod_that_has_it_as_the_status_says_is_not_healed(missing: tuple[str, ...]) -> None:
    named = tuple(MissingPod("default", name, "NeverAsked") for name in missing)
    stamp = datetime.fromtimestamp(NOW - 50, UTC).isoformat()
    pods = Pods(1, 1, fetched=1 - len(named), missing=named, time=stamp)
    resends = ResentDownloads(pods=[started(NOW - 200)])
    resends.status = Status(module=Module.of(record(sha256=A), stamp), pods=pods).to_dict()
    await resender(resends, outage=OUTAGE).check()
    assert resends.requeued == ([KEY] if missing else [])


@pytest.mark.parametrize(("led", "resent"), [(0.0, False), (700.0, True)])
async def test_outage_is_left_to_a_leader_that_led_long_enough_after_it(
    led: float, resent: bool
) -> None:
    """`led`: seconds since another led."""
    outage = Outage(NOW - 1000, NOW - 900)
    resends = ResentDownloads(pods=[started(NOW - 950)])
    settings = replace(QUICK, interval=0.0)
    resend = resender(resends, outage=outage, settings=settings, others_led=-led)
    running = asyncio.create_task(resend.run(AlwaysLeading()))
    while len(resends.queries) < 3:
        await asyncio.sleep(0)
    running.cancel()
    assert resends.requeued == ([KEY] if resent else [])


@given(st.lists(st.floats(min_value=0, max_value=1000), max_size=8))
async def test_heals_at_most_once_in_a_window_and_the_count_never_goes_back(
    ages: list[float],
) -> None:
    resends = ResentDownloads()
    resend = resender(resends)
    before = 0
    for age in ages:
        resends.refuse(age)
        await resend.check()
        count = resend.wanted(KEY, resends.envoyfilter_, A)
        assert count >= before
        before = count
    assert len(resends.requeued) <= 1


@pytest.mark.parametrize("document", [{}, {"spec": None}, {"spec": {"configPatches": []}}])
def test_envoyfilter_that_is_not_as_ours_counts_nothing(document: dict[str, Any]) -> None:
    assert envoyfilters.resend_count_of(document, A) == 0


async def test_pods_that_the_selector_does_not_match_are_not_healed_after_an_outage() -> None:
    outage = Outage(NOW - 200, NOW - 100)
    resends = ResentDownloads(
        selected=False, pods=[msgspec.structs.replace(POD, started=int(NOW) - 150)]
    )
    resend = resender(resends, outage=outage)
    await resend.check()
    assert resends.requeued == []
    resends.selected = True
    await resender(resends, outage=outage).check()
    assert resends.requeued == [KEY]
