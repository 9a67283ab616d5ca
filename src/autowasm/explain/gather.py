"""Reads the facts for the checks from the API server: objects once, the statistics of some sidecars twice, through its proxy.

Reading statistics needs the permission to `get` `pods/proxy`. Invariants: nothing is written; no Secret is listed, and only the one
that `spec.secret` names is read; at most `MAX_OBJECTS` objects of a collection are read; an object that cannot be read is recorded in
`unread`, never treated as absent; only Pods that the API server listed are read, on port 15090, with one path, at most `MAX_READ` of
them; each request has a deadline and a limit of bytes; a sidecar that cannot be read is absent from the result, because the status may
have more.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import Struct

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api.v1alpha1 import AutoWasm, Metadata
from autowasm.artifacts.pullsecrets import PullAccess, access_for
from autowasm.controller.pods import envoystats, podmatching
from autowasm.controller.pods.resend import changed_at
from autowasm.controller.pods.runwatch import Published, RunWatch
from autowasm.controller.publisher import AUTOWASMS, ENVOYFILTERS
from autowasm.controller.secretreader import ClusterSecrets
from autowasm.errors import SourceDenied, SourceUnavailable, SpecError
from autowasm.explain.facts import Facts, RunFact, SecretFact, ServerFact
from autowasm.explain.objects import (
    DestinationRule,
    EndpointSlice,
    EnvoyFilter,
    MeshSettings,
    Namespace,
    NetworkPolicy,
    Pod,
    Service,
    ServiceEntry,
    Sidecar,
    WasmPlugin,
)
from autowasm.kube.client import KubeClient
from autowasm.kube.errors import ApiError, Forbidden, NotFound
from autowasm.kube.resources import NAMESPACES, PODS, SERVICES, ObjectKey, ResourceType
from autowasm.limits import StatsLimits
from autowasm.manifests import reader as manifests
from autowasm.reasons import Reason
from autowasm.settings import EnvoyFetch

MAX_READ: Final = 10
"""Pods: as many as a status names."""
_TWICE: Final = 2
"""A failure counts when two readings show it."""


class StatisticsReader:
    """Reads and judges sidecars of one AutoWasm; `live` is its EnvoyFilter."""

    def __init__(
        self, client: KubeClient, live: Mapping[str, Any], *, limits: StatsLimits | None = None
    ) -> None:
        self._client = client
        self._limits = limits or StatsLimits()
        config, metadata = envoyfilters.plugin_config_of(live), live.get("metadata") or {}
        plugin = str((config or {}).get("name") or "")
        is_named = metadata.get("generation") == 1 or plugin != metadata.get("name")
        self._plugin = plugin
        self._watch = RunWatch(Published(plugin, at=changed_at(live), is_named=is_named))

    async def read(self, pods: Iterable[Pod]) -> tuple[RunFact, ...]:
        """The state of each Pod that can be read, in the order of the Pods."""
        if not self._plugin:
            return ()
        async with asyncio.TaskGroup() as tasks:
            wanted = [pod for pod in pods if pod.proxy is not None and pod.addresses][:MAX_READ]
            reading = [
                tasks.create_task(self._read(pod), name=f"statistics of {pod.where}")
                for pod in wanted
            ]
        return tuple(fact for task in reading if (fact := task.result()) is not None)

    async def _read(self, pod: Pod) -> RunFact | None:
        row = podmatching.Pod(
            pod.metadata.namespace,
            pod.metadata.name,
            pod.where.encode(),
            (),
            "",
            "Running",
            0,
            True,
        )
        fact = None
        for _ in range(_TWICE):
            page = await self._page(pod)
            if page is None or not envoystats.is_prometheus(page):
                return fact
            stats = envoystats.parse(page, read_at=time.monotonic())
            report = self._watch.take(row, stats, now=time.time())
            fact = RunFact(pod=pod.where, state=report.state.value, message=report.message)
        return fact

    async def _page(self, pod: Pod) -> bytes | None:
        name = f"{pod.metadata.name}:{envoystats.PORT}"
        path = (
            PODS.object_path(ObjectKey(pod.metadata.namespace, name)) + f"/proxy{envoystats.PATH}"
        )
        try:
            return bytes(
                await self._client.request(
                    "GET",
                    path,
                    query={"filter": envoystats.FILTER},
                    timeout=self._limits.deadline,
                    most=self._limits.page_bytes,
                )
            )
        except ApiError:
            return None


T = TypeVar("T")

MAX_OBJECTS: Final = 2_000
"""Objects of one collection: enough for a namespace, few enough for an interactive command."""
_PAGE: Final = 500
_AT_ONCE: Final = 6
"""Concurrent calls; the API server's priority and fairness allows one user about as many."""


class _ListMeta(Struct):
    continue_: str = msgspec.field(default="", name="continue")


class _Page(Struct, Generic[T]):
    items: list[T] | None = None
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)


class ObjectReader:
    """Bounded gets and lists. Errors are recorded, not raised: `unread` and `cut` are as in `Facts`."""

    def __init__(self, client: KubeClient) -> None:
        self.unread: dict[str, str] = {}
        self.cut: dict[str, int] = {}
        self._client = client
        self._limit = asyncio.Semaphore(_AT_ONCE)

    async def get(
        self, resource: ResourceType, key: ObjectKey, kind: type[T], *, what: str
    ) -> T | None:
        """One object; None if it is absent, or could not be read (then `unread` has the reason)."""
        try:
            async with self._limit:
                body = await self._client.request("GET", resource.object_path(key))
            return msgspec.json.decode(body, type=kind, strict=False)
        except NotFound:
            return None
        except (ApiError, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._missed(what, error)
            return None

    async def list_all(
        self,
        resource: ResourceType,
        namespaces: Iterable[str | None],
        kind: type[T],
        *,
        what: str,
        labels: str = "",
    ) -> tuple[T, ...]:
        """Objects of these namespaces (None: of all)."""
        found: list[T] = []
        for namespace in namespaces:
            try:
                found += await self._list(
                    resource, namespace, kind, labels=labels, most=MAX_OBJECTS - len(found)
                )
            except NotFound:  # the cluster does not serve this kind
                return ()
            except (ApiError, msgspec.DecodeError, UnicodeDecodeError) as error:
                self._missed(what, error)
                return ()
            if len(found) >= MAX_OBJECTS:
                self.cut[what] = MAX_OBJECTS
                break
        return tuple(found)

    async def _list(
        self,
        resource: ResourceType,
        namespace: str | None,
        kind: type[T],
        *,
        labels: str,
        most: int,
    ) -> list[T]:
        decoder = msgspec.json.Decoder(_Page[kind], strict=False)  # type: ignore[valid-type]
        found: list[T] = []
        path, token = resource.path(namespace=namespace), ""
        while len(found) < most:
            query = {"limit": str(min(_PAGE, most - len(found)))}
            query |= {"continue": token} if token else {}
            query |= {"labelSelector": labels} if labels else {}
            async with self._limit:
                body = await self._client.request("GET", path, query=query)
            page: Any = decoder.decode(body)
            found += page.items or ()
            token = page.metadata.continue_
            if not token:
                break
        return found

    def _missed(self, what: str, error: Exception) -> None:
        if isinstance(error, Forbidden):
            self.unread[what] = "your account may not read them (RBAC)"
        else:
            self.unread[what] = str(error)[:200]


_CONFIGMAPS: Final = ResourceType("", "v1", "configmaps", "ConfigMap")
_SLICES: Final = ResourceType("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
_POLICIES: Final = ResourceType("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
_PLUGINS: Final = ResourceType("extensions.istio.io", "v1alpha1", "wasmplugins", "WasmPlugin")
# Istio serves v1alpha3 since 1.8, v1 only since 1.22.
_SIDECARS: Final = ResourceType("networking.istio.io", "v1alpha3", "sidecars", "Sidecar")
_RULES: Final = ResourceType(
    "networking.istio.io", "v1alpha3", "destinationrules", "DestinationRule"
)
_ENTRIES: Final = ResourceType("networking.istio.io", "v1alpha3", "serviceentries", "ServiceEntry")

_MESH_BYTES: Final = 1 << 20
"""The largest ConfigMap."""
_MAX_NAMESPACES: Final = 20
"""Namespaces of Pods. Only an AutoWasm in the root namespace can select Pods in several."""

ServerOf = Callable[[Pod], ServerFact | None]
"""Reads wasmer's settings from its Pod; None if the Pod does not run wasmer."""


class _ConfigMap(Struct):
    data: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Discovery:
    """Facts that are known before the source is resolved: wasmer's settings, and the EnvoyFilter with the AutoWasm's name."""

    server: ServerFact
    live: dict[str, Any] | None
    service: Service | None
    pods: tuple[Pod, ...]


class _Named(Struct):
    metadata: Metadata


async def keys_of_all(client: KubeClient, namespace: str | None) -> tuple[list[ObjectKey], int]:
    """The AutoWasms of a namespace (None: of all), in the order of the API server, and a lower bound of the number beyond `MAX_OBJECTS`.

    Raises ApiError.
    """
    decoder = msgspec.json.Decoder(_Page[_Named], strict=False)
    keys: list[ObjectKey] = []
    token = ""
    while True:
        query = {"limit": str(_PAGE)} | ({"continue": token} if token else {})
        body = await client.request("GET", AUTOWASMS.path(namespace=namespace), query=query)
        page = decoder.decode(body)
        keys += [
            ObjectKey(each.metadata.namespace, each.metadata.name) for each in page.items or ()
        ]
        token = page.metadata.continue_
        if not token or len(keys) >= MAX_OBJECTS:
            return keys[:MAX_OBJECTS], len(keys) - MAX_OBJECTS + bool(token) if token else 0


class Gatherer:
    """Reads the facts of one AutoWasm. `envoy` names wasmer's Service; `server_of` reads settings from its Pods."""

    def __init__(
        self, client: KubeClient, key: ObjectKey, *, envoy: EnvoyFetch, server_of: ServerOf
    ) -> None:
        self._client = client
        self._key = key
        self._envoy = envoy
        self._server_of = server_of
        self._reader = ObjectReader(client)

    async def autowasm(self) -> dict[str, Any] | None:
        """The live object, None if there is none. Raises ApiError: without the object there is nothing to check."""
        try:
            return await self._client.get(AUTOWASMS, self._key)
        except NotFound:
            return None

    def missed(self, what: str, why: str) -> None:
        """Record a fact outside the API server that could not be read."""
        self._reader.unread[what] = why

    async def discover(self) -> Discovery:
        """Read wasmer's Service and Pods, and the EnvoyFilter with the AutoWasm's name."""
        reader, envoy = self._reader, self._envoy
        namespace = envoy.service_namespace
        live = await reader.get(ENVOYFILTERS, self._key, dict[str, Any], what="envoyfilter")
        where = ObjectKey(namespace, envoy.service_name)
        service = await reader.get(SERVICES, where, Service, what="wasmer service")
        pods: tuple[Pod, ...] = ()
        if service is not None and service.spec.selector:
            labels = _as_selector(service.spec.selector)
            found = await reader.list_all(PODS, [namespace], Pod, what="wasmer pods", labels=labels)
            pods = tuple(pod for pod in found if not pod.has_ended)
        servers = (fact for pod in pods if (fact := self._server_of(pod)) is not None)
        return Discovery(next(servers, ServerFact(envoy=envoy)), live, service, pods)

    async def access(
        self, autowasm: AutoWasm, server: ServerFact
    ) -> tuple[SecretFact | None, PullAccess]:
        """Read `spec.secret` and its login. A bad or missing Secret is a fact, not an error."""
        image, spec = autowasm.image, autowasm.spec
        if image is None or (
            spec.secret is None and not server.cluster.service_account_pull_secrets
        ):
            return None, PullAccess()
        async with asyncio.TaskGroup() as tasks:
            secrets = ClusterSecrets(self._client, tasks)
            try:
                access = await access_for(
                    secrets,
                    namespace=self._key.namespace,
                    secret=spec.secret,
                    reference=image,
                    service_accounts=secrets,
                )
            except (SourceDenied, SourceUnavailable) as error:
                if error.reason != Reason.SECRET_NOT_FOUND:
                    forbidden = "your account may not read it (RBAC)"
                    known = error.reason in {
                        Reason.SECRET_FORBIDDEN,
                        Reason.SERVICE_ACCOUNT_FORBIDDEN,
                    }
                    self._reader.unread["secret"] = forbidden if known else str(error)[:200]
                    return None, PullAccess()
                return SecretFact(reason=error.reason, problem="does not exist"), PullAccess()
            except SpecError as error:
                return SecretFact(reason=error.reason, problem=error.problem), PullAccess()
        if spec.secret is not None and access.credential is None:
            problem = f"has no login for {image.name}: wasmer pulls without a login"
            return SecretFact(reason="SecretNoLogin", problem=problem), access
        return SecretFact() if spec.secret is not None else None, access

    async def facts(self, discovery: Discovery, base: Facts) -> Facts:
        """`base` with all other facts."""
        reader = self._reader
        root = discovery.server.cluster.root_namespace
        mesh = await self._mesh(root)
        root = mesh.root_namespace or root
        pods, neighbours = await self._pods(base, root)
        own = [*dict.fromkeys([self._key.namespace, *(pod.metadata.namespace for pod in pods)])]
        if len(own) > _MAX_NAMESPACES:
            own, reader.cut["namespaces"] = own[:_MAX_NAMESPACES], _MAX_NAMESPACES
            pods = tuple(pod for pod in pods if pod.metadata.namespace in own)
        home = discovery.server.envoy.service_namespace
        wide, all_ = [*dict.fromkeys([*own, root])], [*dict.fromkeys([*own, home, root])]
        labels = f"kubernetes.io/service-name={discovery.server.envoy.service_name}"
        async with asyncio.TaskGroup() as tasks:
            names = tasks.create_task(self._namespaces(all_), name="namespaces")
            services = tasks.create_task(
                reader.list_all(SERVICES, own, Service, what="services"), name="services"
            )
            filters = tasks.create_task(
                reader.list_all(ENVOYFILTERS, wide, EnvoyFilter, what="envoyfilters"),
                name="filters",
            )
            plugins = tasks.create_task(
                reader.list_all(_PLUGINS, wide, WasmPlugin, what="wasmplugins"), name="plugins"
            )
            sidecars = tasks.create_task(
                reader.list_all(_SIDECARS, wide, Sidecar, what="sidecars"), name="sidecars"
            )
            policies = tasks.create_task(
                reader.list_all(
                    _POLICIES, dict.fromkeys([*own, home]), NetworkPolicy, what="networkpolicies"
                ),
                name="policies",
            )
            rules = tasks.create_task(
                reader.list_all(_RULES, all_, DestinationRule, what="destinationrules"),
                name="rules",
            )
            entries = tasks.create_task(
                reader.list_all(_ENTRIES, all_, ServiceEntry, what="serviceentries"), name="entries"
            )
            slices = tasks.create_task(
                reader.list_all(
                    _SLICES, [home], EndpointSlice, what="wasmer endpoints", labels=labels
                ),
                name="endpoints",
            )
            runs = tasks.create_task(self._runs(base, discovery.live, pods), name="statistics")
        return msgspec.structs.replace(
            base,
            server=discovery.server,
            live=discovery.live,
            mesh=mesh,
            namespaces=names.result(),
            pods=pods,
            runs=runs.result(),
            neighbours=neighbours,
            services=services.result(),
            envoyfilters=filters.result(),
            wasmplugins=plugins.result(),
            sidecars=sidecars.result(),
            networkpolicies=policies.result(),
            destinationrules=rules.result(),
            serviceentries=entries.result(),
            wasmer_service=discovery.service,
            wasmer_pods=discovery.pods,
            wasmer_endpoints=slices.result(),
            unread=dict(reader.unread),
            cut=dict(reader.cut),
        )

    async def _runs(
        self, base: Facts, live: dict[str, Any] | None, pods: tuple[Pod, ...]
    ) -> tuple[RunFact, ...]:
        if live is None or base.planned:
            return ()
        return await StatisticsReader(self._client, live).read(pods)

    async def _mesh(self, root: str) -> MeshSettings:
        found = await self._reader.get(
            _CONFIGMAPS, ObjectKey(root, "istio"), _ConfigMap, what="mesh"
        )
        text = (found.data or {}).get("mesh", "") if found is not None else ""
        try:
            # istiod parses it with kubectl's YAML library.
            value = manifests.read_value(text.encode(), file_bytes=_MESH_BYTES) or {}
            return msgspec.convert(value, type=MeshSettings, strict=False)
        except (msgspec.DecodeError, ValueError):
            self._reader.unread["mesh"] = "the mesh configuration cannot be parsed"
            return MeshSettings()

    async def _pods(self, base: Facts, root: str) -> tuple[tuple[Pod, ...], tuple[Pod, ...]]:
        if base.autowasm is None:
            return (), ()
        where = [None if self._key.namespace == root else self._key.namespace]
        labels = _as_selector(base.autowasm.spec.selector.match_labels)
        pods = await self._living(where, labels, what="pods")
        if pods or "pods" in self._reader.unread or not labels:
            return pods, ()
        return (), await self._living([self._key.namespace], "", what="neighbours")

    async def _living(
        self, where: Iterable[str | None], labels: str, *, what: str
    ) -> tuple[Pod, ...]:
        found = await self._reader.list_all(PODS, where, Pod, what=what, labels=labels)
        return tuple(pod for pod in found if not pod.has_ended)

    async def _namespaces(self, names: Iterable[str]) -> Mapping[str, Namespace]:
        found = {}
        for name in names:
            namespace = await self._reader.get(
                NAMESPACES, ObjectKey("", name), Namespace, what="namespaces"
            )
            if namespace is not None:
                found[name] = namespace
        return found


def _as_selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
