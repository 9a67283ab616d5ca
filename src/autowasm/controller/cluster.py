"""ClusterMode: the reconciler's access to the API server through informers (`AutoWasmLookup`, `SecretReader`).

The informers of AutoWasm and EnvoyFilter always run, those of Pod only on the leader. Observers update the indexes and queue the
keys of changed objects. Writes are in `publisher.py`. Invariants: only EnvoyFilters with our label are requested;
handlers never wait; the echo of our own write queues no key; a read returns our last write or a newer version.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from autowasm.api import status as statuses
from autowasm.api.envoyfilter import MANAGED_BY
from autowasm.api.status import Pods
from autowasm.artifacts.pullsecrets import PullSecret
from autowasm.controller.interfaces import Lookup, RecordEvent
from autowasm.controller.mutationcache import MutationCache
from autowasm.controller.pods.loadreport import LoadReport
from autowasm.controller.pods.podmatching import (
    Pod,
    PodAddressIndex,
    PodMatcher,
    PodSelector,
    has_ended,
    pod_codec,
)
from autowasm.controller.pods.podstatuswriter import PodReport, PodStatusWriter, pod_report
from autowasm.controller.pods.runningreport import RunningReport
from autowasm.controller.publisher import AUTOWASMS, ENVOYFILTERS, ClusterPublisher
from autowasm.controller.secretreader import ClusterSecrets
from autowasm.kube.client import KubeClient
from autowasm.kube.codec import DocumentCodec, StoredDocument
from autowasm.kube.informer import Informer, InformerGroup
from autowasm.kube.leaderelection import Leadership, while_leading
from autowasm.kube.listwatch import ListWatch
from autowasm.kube.reflector import ReflectorMetrics
from autowasm.kube.resources import PODS, ObjectKey
from autowasm.settings import Cluster

_OURS = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())


class Reflections(Protocol):
    """Metrics of informers, by name."""

    def reflector(self, name: str) -> ReflectorMetrics:
        """The metrics of one informer."""


@dataclass(frozen=True, slots=True)
class ClusterInformers:
    """The informers of the watched namespaces."""

    autowasms: InformerGroup[StoredDocument]
    envoyfilters: InformerGroup[StoredDocument]
    pods: InformerGroup[Pod]
    """Only the leader runs these."""

    @property
    def all(self) -> tuple[Informer[Any], ...]:
        """Every informer."""
        return (*self.autowasms, *self.envoyfilters, *self.pods)


def make_informers(
    client: KubeClient, *, cluster: Cluster, metrics: Reflections
) -> ClusterInformers:
    """Create the informers; none runs yet."""
    namespaces: tuple[str | None, ...] = cluster.watch_namespaces or (None,)
    limits = client.limits
    return ClusterInformers(
        autowasms=InformerGroup(
            Informer(
                "autowasms",
                list_watch=ListWatch(
                    client,
                    AUTOWASMS,
                    DocumentCodec(limits),
                    namespace=namespace,
                    pause=limits.echo_pause,
                ),
                limits=limits,
                resync=limits.resync,
                metrics=metrics.reflector("autowasms"),
            )
            for namespace in namespaces
        ),
        envoyfilters=InformerGroup(
            Informer(
                "envoyfilters",
                list_watch=ListWatch(
                    client,
                    ENVOYFILTERS,
                    DocumentCodec(limits),
                    namespace=namespace,
                    label_selector=_OURS,
                    pause=limits.echo_pause,
                ),
                limits=limits,
                metrics=metrics.reflector("envoyfilters"),
            )
            for namespace in namespaces
        ),
        pods=InformerGroup(
            Informer(
                "pods",
                list_watch=ListWatch(
                    client, PODS, pod_codec(), namespace=namespace, pause=limits.pods_pause
                ),
                limits=limits,
                metrics=metrics.reflector("pods"),
            )
            for namespace in namespaces
        ),
    )


Document = Mapping[str, Any]


class _DocumentObserver(ABC):
    """Handles additions, changes, resyncs and deletions the same way: it reads the document that exists now."""

    def on_add(self, key: ObjectKey, new: Document, /, *, initial: bool) -> None:
        """The object was added."""
        self._document_changed(key, new)

    def on_update(self, key: ObjectKey, _old: Document, new: Document, /) -> None:
        """We or another client changed the object, or it is a resync."""
        self._document_changed(key, new)

    def on_delete(self, key: ObjectKey, _old: Document, /) -> None:
        """The object was deleted, or lost the label that the informer selects by."""
        self._document_changed(key, None)

    @abstractmethod
    def _document_changed(self, key: ObjectKey, document: Document | None) -> None: ...


class AutoWasmObserver(_DocumentObserver):
    """Updates the matcher's selectors. `root`: the mesh's root namespace."""

    def __init__(
        self,
        view: MutationCache,
        *,
        matcher: PodMatcher,
        pod_status_writer: PodStatusWriter,
        touch: Callable[[ObjectKey], None],
        root: str,
        changed: Callable[[ObjectKey], None],
    ) -> None:
        """`touch`: the AutoWasm now matches other Pods."""
        self._view = view
        self._matcher = matcher
        self._pod_status_writer = pod_status_writer
        self._touch = touch
        self._root = root
        self._changed = changed

    def _document_changed(self, key: ObjectKey, document: Document | None) -> None:
        echo = self._view.observed(key, document)
        selector = _selector(key, document, root=self._root)
        if selector is None:
            self._matcher.remove_selector(key)
        elif self._matcher.set_selector(key, selector):
            self._touch(key)
        if document is None:
            self._pod_status_writer.forget(key)
        else:
            self._pod_status_writer.observe(key, document)
        if not echo:
            self._changed(key)


class EnvoyFilterObserver(_DocumentObserver):
    """Handles the EnvoyFilters with our label. Each has the name of its AutoWasm."""

    def __init__(
        self,
        view: MutationCache,
        *,
        changed: Callable[[ObjectKey], None],
        echoed: Callable[[ObjectKey], None],
    ) -> None:
        """`changed`: another client changed the EnvoyFilter. `echoed`: the change is our own write."""
        self._view = view
        self._changed = changed
        self._echoed = echoed

    def _document_changed(self, key: ObjectKey, document: Document | None) -> None:
        echo = self._view.observed(key, document)
        (self._echoed if echo else self._changed)(key)


class PodObserver:
    """Updates the indexes of addresses and of matched Pods, and schedules updates of `status.pods`."""

    def __init__(
        self,
        matcher: PodMatcher,
        *,
        addresses: PodAddressIndex,
        touch: Callable[[ObjectKey], None],
    ) -> None:
        """`touch`: the Pods that an AutoWasm matches have changed."""
        self._matcher = matcher
        self._addresses = addresses
        self._touch = touch

    def on_add(self, _key: ObjectKey, new: Pod, /, *, initial: bool) -> None:
        """A Pod was added."""
        self._document_changed(None, new)

    def on_update(self, _key: ObjectKey, old: Pod, new: Pod, /) -> None:
        """A Pod changed, including its status."""
        self._document_changed(old, new)

    def on_delete(self, _key: ObjectKey, old: Pod, /) -> None:
        """A Pod was deleted."""
        self._document_changed(old, None)

    def _document_changed(self, old: Pod | None, new: Pod | None) -> None:
        self._addresses.pod_changed(old, new)
        for key in self._matcher.pod_changed(old, new):
            self._touch(key)


def _selector(key: ObjectKey, document: Document | None, *, root: str) -> PodSelector | None:
    """None for a deleted object and for an invalid one, which validation reports."""
    try:
        labels = (document or {})["spec"]["selector"]["matchLabels"]
        pairs = tuple(sorted((str(name), str(value)) for name, value in labels.items()))
    except (KeyError, TypeError, AttributeError):
        return None
    return PodSelector(None if key.namespace == root else key.namespace, pairs)


PODS_AWAITED: Final = 5.0
"""Seconds for which a new leader's first writes wait for the list of Pods; without it, they keep the old `status.pods`."""


class ClusterMode:
    """Cluster mode: everything that the reconciler reads from the API server or writes to it."""

    def __init__(
        self,
        client: KubeClient,
        *,
        cluster: Cluster,
        record_event: RecordEvent,
        metrics: Reflections,
        leadership: Leadership,
        unexpected: Callable[[], None] = lambda: None,
    ) -> None:
        """`unexpected`: see `PodStatusWriter`."""
        self._leadership = leadership
        self._led_since: float | None = None
        self._client = client
        self._matcher = PodMatcher()
        self._addresses = PodAddressIndex()
        self._load_report: Callable[[ObjectKey], Awaitable[LoadReport | None]] = _nothing
        self._running_report: Callable[[ObjectKey], Awaitable[RunningReport | None]] = _nothing
        self._pods_changed: Callable[[ObjectKey], None] = _ignore
        self._published_changed: Callable[[ObjectKey], None] = _ignore
        self._changed: Callable[[ObjectKey], None] = _ignore
        self._informers = make_informers(client, cluster=cluster, metrics=metrics)
        self._pods = self._informers.pods
        autowasms, envoyfilters = self._informers.autowasms, self._informers.envoyfilters
        self._autowasm_view = MutationCache(
            autowasms.get, autowasms.position, changed=self._object_changed
        )
        self._envoyfilter_view = MutationCache(
            envoyfilters.get, envoyfilters.position, changed=self._object_changed
        )
        self.publisher = ClusterPublisher(
            client,
            autowasms=self._autowasm_view,
            envoyfilters=self._envoyfilter_view,
            record_event=record_event,
            leadership=leadership,
        )
        self._pod_status_writer = PodStatusWriter(
            report=self.report,
            document=self._autowasm_view.get,
            publisher=self.publisher,
            unexpected=unexpected,
        )
        self._observe(root=cluster.root_namespace)

    def _observe(self, *, root: str) -> None:
        def echoed(key: ObjectKey) -> None:
            self._published_changed(key)

        self._informers.autowasms.add_handler(
            AutoWasmObserver(
                self._autowasm_view,
                matcher=self._matcher,
                pod_status_writer=self._pod_status_writer,
                touch=self._touch_changed,
                root=root,
                changed=self._object_changed,
            )
        )
        self._informers.envoyfilters.add_handler(
            EnvoyFilterObserver(self._envoyfilter_view, changed=self._object_changed, echoed=echoed)
        )
        self._pods.add_handler(
            PodObserver(self._matcher, addresses=self._addresses, touch=self._touch_changed)
        )

    @property
    def informers(self) -> tuple[Informer[Any], ...]:
        """All informers, including those that only a leader runs."""
        return self._informers.all

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Start the informers; return after the first list of AutoWasms and EnvoyFilters."""
        self._secrets = ClusterSecrets(self._client, tasks)
        followed = (self._informers.autowasms, self._informers.envoyfilters)
        for group in followed:
            group.start(tasks)
        for group in followed:
            await group.wait_synced()

    def keys(self) -> frozenset[ObjectKey]:
        """The key of every AutoWasm and every EnvoyFilter with our label: the module of an orphaned EnvoyFilter is still served."""
        return frozenset(self._informers.autowasms.keys()) | frozenset(
            self._informers.envoyfilters.keys()
        )

    async def run(
        self,
        *,
        changed: Callable[[ObjectKey], None],
        secret_changed: Callable[[ObjectKey], None],  # Secrets are not watched (ADR 19)
    ) -> None:
        """Report changes forever, and keep `status.pods` up to date while leading."""
        self._changed = changed
        await while_leading(self._leadership, self._lead)

    async def _lead(self) -> None:
        """Run the Pod informers while leading. Each term as leader begins with a new list of Pods."""
        self._led_since = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            self._pods.start(tasks)
            await self._pods.wait_synced()
            for key in self.keys():
                self._pod_status_writer.touch(key)
            await self._pod_status_writer.run()

    async def prepare(self) -> None:
        """Return when Pods are listed, so that the first status is complete, or after a few seconds."""
        begun = asyncio.get_running_loop().time() if self._led_since is None else self._led_since
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(begun + PODS_AWAITED):
                await self._pods.wait_synced()

    def lookup(self, key: ObjectKey) -> Lookup | None:
        """The object as the informer shows it, or our last write of it."""
        document = self._autowasm_view.get(key)
        return Lookup(document) if document is not None else None

    async def read(self, namespace: str, name: str) -> PullSecret | None:
        """See `SecretReader`."""
        return await self._secrets.read(namespace, name)

    async def pull_secrets(self, namespace: str) -> tuple[str, ...]:
        """See `ServiceAccounts`."""
        return await self._secrets.pull_secrets(namespace)

    def use_load_report(self, report: Callable[[ObjectKey], Awaitable[LoadReport | None]]) -> None:
        """Use this report for `status.pods` from now on."""
        self._load_report = report

    def use_running_report(
        self,
        report: Callable[[ObjectKey], Awaitable[RunningReport | None]],
        *,
        pods_changed: Callable[[ObjectKey], None],
        published_changed: Callable[[ObjectKey], None],
    ) -> None:
        """Use this report for `status.pods.running` from now on.

        `pods_changed`: Pods that an AutoWasm matches have changed. `published_changed`: what `envoyfilter` returns may have changed.
        """
        self._running_report, self._pods_changed = report, pods_changed
        self._published_changed = published_changed

    async def report(self, key: ObjectKey) -> PodReport | None:
        """The report on the Pods that the AutoWasm's selector matches now; None before Pods are listed."""
        if not self._pods.has_synced:
            return None
        self._pod_status_writer.counting(key)
        load = await self._load_report(key)
        if load is None:
            counts = self._matcher.counts(key)
            return PodReport(Pods(matched=counts.matched, injected=counts.injected))
        running = await self._running_report(key)
        previous = statuses.read((self.document(key) or {}).get("status")).pods
        return pod_report(load, running, previous=previous, now=statuses.utc_now())

    @property
    def are_listed(self) -> bool:
        """See `rollout.driver.RolloutPods`."""
        return self._pods.has_synced

    def matched(self, key: ObjectKey) -> Iterator[Pod]:
        """See `rollout.Workloads`."""
        return (
            pod for name in self._matcher.pods(key) if (pod := self._pods.get(name)) is not None
        )

    def pods_at(self, address: str) -> Iterator[Pod]:
        """See `rollout.Workloads`."""
        names = self._addresses.at(address)
        return (pod for name in names if (pod := self._pods.get(name)) is not None)

    def is_shared(self, pod: Pod) -> bool:
        """See `rollout.Workloads`."""
        return self._addresses.is_shared(pod)

    def pod(self, name: ObjectKey) -> Pod | None:
        """The Pod that has this name now."""
        return self._pods.get(name)

    def touch_pods(self, key: ObjectKey) -> None:
        """See `rollout.Workloads`."""
        self._pod_status_writer.touch(key)

    def _object_changed(self, key: ObjectKey) -> None:
        """Another client changed the AutoWasm or its EnvoyFilter: now, or while a call of ours was in flight."""
        self._published_changed(key)
        self._changed(key)

    def _touch_changed(self, key: ObjectKey) -> None:
        self._pods_changed(key)
        self._pod_status_writer.touch(key)

    def document(self, key: ObjectKey) -> Document | None:
        """The AutoWasm."""
        return self._autowasm_view.get(key)

    def envoyfilter(self, key: ObjectKey) -> Document | None:
        """Our live EnvoyFilter."""
        return self.publisher.published(key)

    def sidecars(self) -> Iterator[Pod]:
        """Pods with a running sidecar, from informers that have synced. Pods may change during the iteration."""
        return (pod for pod in list(self._pods.listed()) if pod.injected and not has_ended(pod))

    def selects(self, key: ObjectKey, pod: Pod) -> bool:
        """Whether the AutoWasm's selector matches the Pod."""
        return self._matcher.selects(key, pod)


async def _nothing(_key: ObjectKey) -> None:
    """The load report until `use_load_report` is called."""


def _ignore(_key: ObjectKey) -> None:
    """The callback until `run` is called, which queues every key."""
