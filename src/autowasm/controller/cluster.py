"""ClusterMode: the API server as the reconciler sees it (`AutoWasmLookup`, `SecretReader`) and what wakes it.

Informers over AutoWasm and EnvoyFilter, and over Pod while leading. Not the reconciler and not the writes (`publisher.py`). Invariants: handlers
only compute keys; the echo of our own write wakes nobody.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from autowasm.api.envoyfilter import MANAGED_BY
from autowasm.api.status import Pods
from autowasm.artifacts.pullsecrets import PullSecret
from autowasm.controller.interfaces import Announce, Lookup
from autowasm.controller.matching import PodMatcher, PodSelector, has_ended
from autowasm.controller.overlay import WriteOverlay
from autowasm.controller.podindex import PodAddresses
from autowasm.controller.podstatus import PodStatus, Said
from autowasm.controller.proof import Report
from autowasm.controller.publisher import AUTOWASMS, ENVOYFILTERS, ClusterPublisher
from autowasm.controller.secrets import ClusterSecrets
from autowasm.kube.client import KubeClient
from autowasm.kube.codec import document_codec
from autowasm.kube.informer import Informer
from autowasm.kube.leadership import Leadership, while_leading
from autowasm.kube.listwatch import ListWatch
from autowasm.kube.pods import Pod, pod_codec
from autowasm.kube.reflector import ReflectorMetrics
from autowasm.kube.resources import PODS, ObjectKey
from autowasm.settings import Cluster

Document = Mapping[str, Any]
PODS_AWAITED: Final = 5.0
"""Seconds that a new leader's first writes wait for the list of Pods; without it they leave `status.pods` as it was."""
_OURS = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())


class Reflections(Protocol):
    """Metrics for each informer by name."""

    def reflector(self, name: str) -> ReflectorMetrics:
        """Those of one informer."""


class ClusterMode:
    """Everything that the reconciler takes from, and gives to, the API server."""

    def __init__(
        self,
        client: KubeClient,
        *,
        cluster: Cluster,
        announce: Announce,
        metrics: Reflections,
        leadership: Leadership,
    ) -> None:
        self._leadership = leadership
        self._led_since: float | None = None
        self._client = client
        self._cluster = cluster
        self._matcher = PodMatcher()
        self._addresses = PodAddresses()
        self._report: Callable[[ObjectKey], Report | None] = lambda _: None
        self._changed: Callable[[ObjectKey], None] = _nobody
        namespaces: tuple[str | None, ...] = cluster.watch_namespaces or (None,)
        limits = client.limits
        self._autowasms = [
            Informer(
                "autowasms",
                list_watch=ListWatch(client, AUTOWASMS, document_codec(), namespace=namespace),
                limits=limits,
                resync=limits.resync,
                metrics=metrics.reflector("autowasms"),
            )
            for namespace in namespaces
        ]
        self._envoyfilters = [
            Informer(
                "envoyfilters",
                list_watch=ListWatch(
                    client,
                    ENVOYFILTERS,
                    document_codec(),
                    namespace=namespace,
                    label_selector=_OURS,
                ),
                limits=limits,
                metrics=metrics.reflector("envoyfilters"),
            )
            for namespace in namespaces
        ]
        self._pods = [
            Informer(
                "pods",
                list_watch=ListWatch(client, PODS, pod_codec(), namespace=namespace),
                limits=limits,
                metrics=metrics.reflector("pods"),
            )
            for namespace in namespaces
        ]
        self._autowasm_view = WriteOverlay(lambda key: _stored(self._autowasms, key))
        self._envoyfilter_view = WriteOverlay(lambda key: _stored(self._envoyfilters, key))
        self.publisher = ClusterPublisher(
            client,
            autowasms=self._autowasm_view,
            envoyfilters=self._envoyfilter_view,
            announce=announce,
            leadership=leadership,
        )
        self._pod_status = PodStatus(
            said=self.pods, document=self._autowasm_view.get, publisher=self.publisher
        )
        for autowasm_informer in self._autowasms:
            autowasm_informer.add_handler(_AutoWasmHandler(self))
        for envoyfilter_informer in self._envoyfilters:
            envoyfilter_informer.add_handler(_EnvoyFilterHandler(self))
        for pod_informer in self._pods:
            pod_informer.add_handler(_PodHandler(self))

    @property
    def informers(self) -> tuple[Informer[Any], ...]:
        """All of them, those that only a leader runs as well."""
        return (*self._autowasms, *self._envoyfilters, *self._pods)

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Follow the API server; return once AutoWasms and EnvoyFilters were listed once."""
        self._secrets = ClusterSecrets(self._client, tasks)
        informers: list[Informer[Any]] = [*self._autowasms, *self._envoyfilters]
        for informer in informers:
            tasks.create_task(informer.run(), name=f"informer {informer.name}")
        for informer in informers:
            await informer.wait_synced()

    def keys(self) -> frozenset[ObjectKey]:
        """Every AutoWasm, and every EnvoyFilter with our label: one that was orphaned is still served."""
        informers = (*self._autowasms, *self._envoyfilters)
        return frozenset(key for informer in informers for key in informer.store)

    async def run(
        self,
        *,
        changed: Callable[[ObjectKey], None],
        secret_changed: Callable[[ObjectKey], None],  # Secrets are not watched (D11)
    ) -> None:
        """Tell of changes, and while leading keep `status.pods` up to date, for ever."""
        self._changed = changed
        await while_leading(self._leadership, self._lead)

    async def _lead(self) -> None:
        """Follow Pods, which only a leader needs. A later time begins with a list, and says nothing of Pods before."""
        self._led_since = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            for informer in self._pods:
                tasks.create_task(informer.run(), name=f"informer {informer.name}")
            for informer in self._pods:
                await informer.wait_synced()
            for key in self.keys():
                self._pod_status.touch(key)
            await self._pod_status.run()

    async def prepared(self) -> None:
        """Return once Pods are known, so that a first status is whole, or after a moment without them."""
        begun = asyncio.get_running_loop().time() if self._led_since is None else self._led_since
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(begun + PODS_AWAITED):
                for informer in self._pods:
                    await informer.wait_synced()

    def lookup(self, key: ObjectKey) -> Lookup | None:
        """The object as stored, or as we last wrote it."""
        document = self._autowasm_view.get(key)
        return Lookup(document) if document is not None else None

    async def read(self, namespace: str, name: str) -> PullSecret | None:
        """See `SecretReader`."""
        return await self._secrets.read(namespace, name)

    async def pull_secrets(self, namespace: str) -> tuple[str, ...]:
        """See `ServiceAccounts`."""
        return await self._secrets.pull_secrets(namespace)

    def prove(self, report: Callable[[ObjectKey], Report | None]) -> None:
        """See `loading.Workloads`."""
        self._report = report

    def pods(self, key: ObjectKey) -> Said | None:
        """What is to be said of the Pods that the AutoWasm's selector matches now; None until Pods were listed."""
        if not all(informer.has_synced for informer in self._pods):
            return None
        report = self._report(key)
        if report is not None:
            return report.pods, report.loaded
        counts = self._matcher.counts(key)
        return Pods(matched=counts.matched, injected=counts.injected), None

    def matched(self, key: ObjectKey) -> Iterator[Pod]:
        """See `loading.Workloads`."""
        return (pod for name in self._matcher.pods(key) if (pod := self._pod(name)) is not None)

    def pods_at(self, address: str) -> Iterator[Pod]:
        """See `loading.Workloads`."""
        names = self._addresses.at(address)
        return (pod for name in names if (pod := self._pod(name)) is not None)

    def is_shared(self, pod: Pod) -> bool:
        """See `loading.Workloads`."""
        return self._addresses.is_shared(pod)

    def touch_pods(self, key: ObjectKey) -> None:
        """See `loading.Workloads`."""
        self._pod_status.touch(key)

    def _pod(self, name: ObjectKey) -> Pod | None:
        return next((pod for one in self._pods if (pod := one.store.get(name)) is not None), None)

    def document(self, key: ObjectKey) -> Document | None:
        """The AutoWasm."""
        return self._autowasm_view.get(key)

    def envoyfilter(self, key: ObjectKey) -> Document | None:
        """The live EnvoyFilter that is ours."""
        return self.publisher.published(key)

    def sidecars(self) -> Iterator[Pod]:
        """Pods with a sidecar that runs, once they were listed."""
        for informer in self._pods:
            if informer.has_synced:
                yield from (
                    pod for pod in informer.store.values() if pod.injected and not has_ended(pod)
                )

    def selects(self, key: ObjectKey, pod: Pod) -> bool:
        """Whether the AutoWasm's selector matches the Pod."""
        return self._matcher.selects(key, pod)

    def autowasm_seen(self, key: ObjectKey, document: Document | None) -> None:
        """The informer shows a state of an AutoWasm; None: it is gone."""
        echo = self._autowasm_view.observed(key, document)
        selector = _selector(key, document, root=self._cluster.root_namespace)
        if selector is None:
            self._matcher.remove_selector(key)
        elif self._matcher.set_selector(key, selector):
            self._pod_status.touch(key)
        if document is None:
            self._pod_status.forget(key)
        if not echo:
            self._changed(key)

    def envoyfilter_seen(self, key: ObjectKey, document: Document | None) -> None:
        """The informer shows a state of an EnvoyFilter with our label; it has the AutoWasm's name."""
        if not self._envoyfilter_view.observed(key, document):
            self._changed(key)

    def pod_seen(self, old: Pod | None, new: Pod | None) -> None:
        """The informer shows a change of a Pod."""
        self._addresses.pod_changed(old, new)
        for key in self._matcher.pod_changed(old, new):
            self._pod_status.touch(key)


class _AutoWasmHandler:
    def __init__(self, mode: ClusterMode) -> None:
        self._mode = mode

    def on_add(self, key: ObjectKey, new: Document, /, *, initial: bool) -> None:
        self._mode.autowasm_seen(key, new)

    def on_update(self, key: ObjectKey, _old: Document, new: Document, /) -> None:
        self._mode.autowasm_seen(key, new)

    def on_delete(self, key: ObjectKey, _old: Document, /) -> None:
        self._mode.autowasm_seen(key, None)


class _EnvoyFilterHandler:
    def __init__(self, mode: ClusterMode) -> None:
        self._mode = mode

    def on_add(self, key: ObjectKey, new: Document, /, *, initial: bool) -> None:
        self._mode.envoyfilter_seen(key, new)

    def on_update(self, key: ObjectKey, _old: Document, new: Document, /) -> None:
        self._mode.envoyfilter_seen(key, new)

    def on_delete(self, key: ObjectKey, _old: Document, /) -> None:
        self._mode.envoyfilter_seen(key, None)


class _PodHandler:
    def __init__(self, mode: ClusterMode) -> None:
        self._mode = mode

    def on_add(self, _key: ObjectKey, new: Pod, /, *, initial: bool) -> None:
        self._mode.pod_seen(None, new)

    def on_update(self, _key: ObjectKey, old: Pod, new: Pod, /) -> None:
        self._mode.pod_seen(old, new)

    def on_delete(self, _key: ObjectKey, old: Pod, /) -> None:
        self._mode.pod_seen(old, None)


def _nobody(_key: ObjectKey) -> None:
    """Before `run`: every key is looked at once then."""


def _stored(informers: list[Informer[dict[str, Any]]], key: ObjectKey) -> Document | None:
    return next((found for one in informers if (found := one.store.get(key)) is not None), None)


def _selector(key: ObjectKey, document: Document | None, *, root: str) -> PodSelector | None:
    """None for what is gone, or is not valid: validation says that elsewhere."""
    try:
        labels = (document or {})["spec"]["selector"]["matchLabels"]
        pairs = tuple(sorted((str(name), str(value)) for name, value in labels.items()))
    except (KeyError, TypeError, AttributeError):
        return None
    return PodSelector(None if key.namespace == root else key.namespace, pairs)
