"""Matching Pods with the selectors of 1 000 AutoWasms: changes a second, a new AutoWasm, one label on thousands of Pods.

In this process, without a network: it measures `controller/pods/podmatching.py` behind the controller's own decoder and
store. The rival is a plain loop over all selectors. Growth must be linear, and is drawn.
"""

import asyncio
import gc
import random
import time
from collections.abc import Callable
from statistics import quantiles

from autowasm.controller.pods.podmatching import Pod, PodMatcher, PodSelector, pod_codec
from autowasm.kube.codec import Codec, WatchEvent
from autowasm.kube.informer import ObjectStore
from autowasm.kube.resources import ObjectKey
from tests.bench import pods
from tests.bench.plan import Plan
from tests.bench.table import Chart, Figure, Result, at_least, at_most, ratio_at_least

_CHANGES = 20_000


async def run(plan: Plan) -> Result:
    """Everything runs in a thread: nothing here waits."""
    return await asyncio.to_thread(_run, plan)


def _run(plan: Plan) -> Result:
    count, autowasms = plan.pick(50_000, 2_000), plan.pick(1_000, 100)
    sizes = [plan.pick(size, size // 20) for size in (1_000, 2_000, 5_000, 10_000, 20_000)]
    codec = pod_codec()
    rows = _decode(codec, range(count), label="v1")
    world = _World(rows, autowasms)
    rates, naive, news, relabel = [], [], [], []
    growth: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(plan.repeats):
        rates.append(world.changes_a_second())
        naive.append(world.changes_a_second_naively())
        news.append(1000 * world.new_autowasm())
        for size in sizes:
            growth[size].append(1000 * _relabel(codec, rows, size, autowasms))
        relabel.append(growth[sizes[-2]][-1])
    figures = [
        Figure(
            f"Pod changes against {autowasms} AutoWasms", "1/s", rates, "a plain loop", naive,
            at_least(200_000),
        ),
        Figure("the same beside a plain loop", "1/s", rates, "a plain loop", naive, ratio_at_least(5)),
        Figure(f"a new AutoWasm among {count} Pods, p99", "ms", news, budget=at_most(1)),
        Figure(f"one label change on {sizes[-2]} Pods, from bytes to counts", "ms", relabel),
        Figure(
            f"linear growth: {sizes[-1]} Pods to {sizes[0]} Pods, for a Pod", "",
            [growth[sizes[-1]][turn] / sizes[-1] * sizes[0] / growth[sizes[0]][turn] for turn in range(plan.repeats)],
            budget=at_most(1.5),
        ),
    ]  # fmt: skip
    middle = [sorted(growth[size])[len(growth[size]) // 2] for size in sizes]
    linear = [middle[0] * size / sizes[0] for size in sizes]
    chart = Chart(
        "match",
        f"One label change on many Pods, {autowasms} AutoWasms",
        "ms",
        [str(size) for size in sizes],
        {"measured": middle, "linear from the first": linear},
        kind="line",
        label_unit="Pods",
        dashed=["linear from the first"],
    )
    return Result(figures, [chart])


class _World:
    """50 000 Pods, 1 000 selectors: most select an application, some a version, a tier, or a whole namespace."""

    def __init__(self, rows: list[Pod], autowasms: int) -> None:
        self._rows = rows
        self._random = random.Random(7)
        self._selectors = _selectors(len(rows), autowasms, self._random)
        self.matcher = matcher(rows, self._selectors)

    def changes_a_second(self) -> float:
        """Pods whose labels change so that other AutoWasms select them, and back."""
        some = [self._random.choice(self._rows) for _ in range(_CHANGES // 2)]
        others = [self._random.choice(self._rows) for _ in range(_CHANGES // 2)]

        def work() -> None:
            for one, other in zip(some, others, strict=True):
                self.matcher.pod_changed(one, other)
                self.matcher.pod_changed(other, one)

        return _CHANGES / _seconds(work)

    def changes_a_second_naively(self) -> float:
        """Each selector is compared with each changed Pod, as in an operator without an index."""
        some = [self._random.choice(self._rows) for _ in range(200)]
        wanted = [(one.namespace, frozenset(one.labels)) for one in self._selectors.values()]

        def work() -> None:
            for one in some:
                labels = frozenset(one.labels)
                for namespace, pairs in wanted:
                    _ = namespace in (None, one.namespace) and pairs <= labels

        return len(some) / 2 / _seconds(work)  # both sides of a change are examined

    def new_autowasm(self) -> float:
        """Seconds until its Pods are counted, 99th percentile."""
        times = []
        for number, selector in enumerate(list(self._selectors.values())[:500]):
            key = ObjectKey("new", f"n{number}")

            def work(key: ObjectKey = key, selector: PodSelector = selector) -> None:
                self.matcher.set_selector(key, selector)
                self.matcher.counts(key)

            times.append(_seconds(work, collect=False))
            self.matcher.remove_selector(key)
        return quantiles(times, n=100)[98]


def matcher(rows: list[Pod], selectors: dict[ObjectKey, PodSelector]) -> PodMatcher:
    """A matcher with all Pods and selectors."""
    found = PodMatcher()
    for row in rows:
        found.pod_changed(None, row)
    for key, selector in selectors.items():
        found.set_selector(key, selector)
    return found


def _selectors(count: int, autowasms: int, rng: random.Random) -> dict[ObjectKey, PodSelector]:
    found = {}
    for number in range(autowasms):
        pod, kind = rng.randrange(count), rng.random()
        namespace = pods.namespace_of(pod) if rng.random() < 0.95 else None
        app = ("app", pods.application(pod))
        labels: tuple[tuple[str, str], ...] = (app,)
        if kind > 0.97 and namespace is not None:
            labels = ()
        elif kind > 0.9:
            labels = (("tier", rng.choice(("web", "api"))),)
        elif kind > 0.6:
            labels = (app, ("version", rng.choice(("v1", "v2"))))
        found[ObjectKey(namespace or "istio-system", f"a{number}")] = PodSelector(namespace, labels)
    return found


def _decode(codec: Codec[Pod], numbers: range, *, label: str) -> list[Pod]:
    rows = []
    for line in pods.events(numbers, kind="MODIFIED", label=label):
        event = codec.decode_event(line)
        assert isinstance(event, WatchEvent)
        rows.append(event.object)
    return rows


def _relabel(codec: Codec[Pod], rows: list[Pod], count: int, autowasms: int) -> float:
    """Seconds from the bytes of `count` events, each a changed label of a Pod, to the correct counts."""
    found = matcher(rows[:count], _selectors(count, autowasms, random.Random(11)))
    store: ObjectStore[Pod] = ObjectStore()
    for row in rows[:count]:
        store.upsert(ObjectKey(row.namespace, row.name), row)
    everything = ObjectKey("istio-system", "everything with the new label")
    found.set_selector(everything, PodSelector(None, (("version", "v2"),)))
    lines = pods.events(range(count), kind="MODIFIED", label="v2")

    def work() -> None:
        touched: set[ObjectKey] = set()
        for line in lines:
            event = codec.decode_event(line)
            assert isinstance(event, WatchEvent)
            delta = store.upsert(event.key, event.object)
            assert delta is not None
            touched |= found.pod_changed(delta.old, delta.new)
        for key in touched:
            found.counts(key)

    seconds = _seconds(work)
    assert found.counts(everything).matched == count
    return seconds


def _seconds(work: Callable[[], object], *, collect: bool = True) -> float:
    if collect:
        gc.collect()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
