"""AutoWasm installed in a cluster: the shipped CRD and RBAC, a registry with a password, and one `wasmer controller`.

Not a mesh: it has Istio's resources, but istiod and proxies are in `istio.py`. Invariant: wasmer calls the API server with
a token of the shipped ServiceAccount, so requests that the shipped RBAC does not grant are refused.
"""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.parts import clients, istio, ports, registry, wasmer
from tests.parts.audit import AuditLog, Entry
from tests.parts.clients import Client
from tests.parts.kubernetes import Cluster
from tests.parts.registry import RegistryServer
from tests.parts.wasmer import Wasmer

MANIFESTS = Path(__file__).parents[2] / "manifests"
SAMPLES = Path(__file__).parents[1] / "assets/samples"
ACCOUNT = f"system:serviceaccount:{istio.ROOT_NAMESPACE}:wasmer"
PULL_SECRET = "test"
KUBECONFIG = "wasmer.kubeconfig"
USER, PASSWORD = "alice", "s3cret"

_RIGHTS = frozenset({"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"})
_POLL_SECONDS = 0.05

Document = dict[str, Any]


def autowasms(namespace: str = "default", name: str = "", *, subresource: str = "") -> str:
    """The path of the collection, or of one object."""
    path = f"/apis/wasm.tcm.io/v1alpha1/namespaces/{namespace}/autowasms"
    return "/".join(part for part in (path, name, subresource) if part)


def envoyfilters(namespace: str = "default", name: str = "") -> str:
    """The path of the collection, or of one object."""
    path = f"/apis/networking.istio.io/v1alpha3/namespaces/{namespace}/envoyfilters"
    return f"{path}/{name}" if name else path


def install_documents(*kinds: str) -> list[Document]:
    """The objects of install.yaml of these kinds; by default those of RBAC."""
    documents = yaml.safe_load_all((MANIFESTS / "install.yaml").read_text())
    return [document for document in documents if document["kind"] in (kinds or _RIGHTS)]


@dataclass
class Installation:
    """The running parts."""

    directory: Path
    cluster: Cluster
    kubectl: Client
    registry: RegistryServer
    wasmer: Wasmer
    may_die: bool = field(default=False, kw_only=True)
    """Whether the test itself kills wasmer: another replica does the work meanwhile."""

    @property
    def audit(self) -> AuditLog:
        """All requests to the API server."""
        return AuditLog(self.cluster.audit_log)

    async def requests(self, since: int = 0) -> list[Entry]:
        """wasmer's requests to the API server."""
        return await self.audit.entries(user=ACCOUNT, since=since)

    async def writes(self, since: int = 0) -> list[Entry]:
        """wasmer's writes, failed ones included, except those of its Lease, which it renews all the time."""
        writes = await self.audit.writes(user=ACCOUNT, since=since)
        return [entry for entry in writes if entry.resource != "leases"]

    async def logged(self, document: Document) -> int:
        """The end of the audit log, once it has the write of wasmer that made this version of an object.

        The API server may report the version to a watch before the write is in the log, whose level must be `RequestResponse`.
        """
        version = document["metadata"]["resourceVersion"]

        async def is_logged() -> Document | None:
            return {} if await self.audit.has_write(version, user=ACCOUNT) else None

        await self.wait_until(is_logged)
        return await self.audit.position()

    @asynccontextmanager
    async def another(
        self,
        name: str,
        *,
        host: str | None = None,
        api: str | None = None,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Wasmer]:
        """One more replica, with a cache and ports of its own; its blob port is at `host`.

        `api` is the URL at which it finds the API server, unless that is the first replica's.
        """
        kubeconfig = self.directory / KUBECONFIG
        if api is not None:
            kubeconfig = self.directory / f"{name}.kubeconfig"
            await _write_service_account_kubeconfig(self.cluster, kubeconfig, api=api)
        async with wasmer.controller(
            self.directory / name,
            kubeconfig=kubeconfig,
            host=host or f"{ports.LOOPBACK}:{ports.free_port()}",
            plain_http=[self.registry.host],
            arguments=arguments,
            env=env,
        ) as server:
            yield server

    async def push(
        self, tag: str, module: bytes, *, repository: str = "xxx/hello", force: bool = False
    ) -> str:
        """Push with `wasmc`; the reference. `force`: also a module that Envoy cannot run."""
        file = self.directory / f"{hashlib.sha256(module).hexdigest()}.wasm"
        await asyncio.to_thread(file.write_bytes, module)
        image = f"{self.registry.host}/{repository}:{tag}"
        arguments = ("push", image, "-f", str(file), "--username", USER, "--password-stdin")
        forced = ("--force",) if force else ()
        await wasmer.wasmc(self.directory).run(*arguments, *forced, stdin=PASSWORD.encode())
        return image

    def autowasm(
        self, image: str, *, name: str = "test", namespace: str = "default", **fields: Any
    ) -> Document:
        """The sample object with this image; `fields` go into `spec.filter`."""
        document: Document = yaml.safe_load((SAMPLES / "autowasm-registry.yaml").read_text())
        document["metadata"].update(name=name, namespace=namespace)
        document["spec"]["filter"]["source"] = {"registry": {"image": image}}
        document["spec"]["filter"].update(fields)
        return document

    async def add_namespace(self, name: str) -> str:
        """A namespace with the pull secret."""
        await self.cluster.create_namespace(name)
        await self.add_pull_secret(name)
        return name

    async def add_pull_secret(self, namespace: str) -> None:
        """The Secret that the sample names."""
        await self.apply(pull_secret(self.registry.host, namespace=namespace))

    async def apply(self, *documents: Document) -> None:
        """Server-side apply, without a process. Raises ApiError."""
        await self.cluster.apply(*documents)

    async def kubectl_apply(self, *documents: Document) -> None:
        """`kubectl apply`, as a user does. Raises ClientError."""
        text = yaml.safe_dump_all(documents, sort_keys=False)
        await self.kubectl.run("apply", "-f", "-", stdin=text.encode())

    async def get(self, name: str = "test", *, namespace: str = "default") -> Document:
        """The AutoWasm."""
        return await self.cluster.request("GET", autowasms(namespace, name))

    async def envoyfilter(self, name: str = "test", *, namespace: str = "default") -> Document:
        """Its EnvoyFilter. Raises ApiError."""
        return await self.cluster.request("GET", envoyfilters(namespace, name))

    async def wait_phase(
        self, phase: str, *, name: str = "test", namespace: str = "default", timeout: float = 40
    ) -> Document:
        """The AutoWasm once it has this phase for its generation. Raises TimeoutError with its last version and the log."""

        def reached(found: Document | None) -> bool:
            status = (found or {}).get("status") or {}
            return (
                found is not None
                and status.get("observedGeneration") == found["metadata"]["generation"]
                and status.get("phase") == phase
            )

        return await self.wait_object(
            autowasms(namespace, name), reached, what=phase, timeout=timeout
        )

    async def wait_object(
        self,
        path: str,
        condition: Callable[[Document | None], bool],
        *,
        what: str = "",
        timeout: float = 30,
    ) -> Document:
        """The object at `path` (empty: there is none) once it fulfils the condition.

        Raises TimeoutError with its last version and the end of wasmer's log, ProcessError if wasmer died.
        """
        try:
            found = await self.cluster.client.wait_object(
                path, condition, timeout=timeout, meanwhile=self._check
            )
        except TimeoutError as error:
            tail = await self.wasmer.process.tail()
            raise TimeoutError(f"not {what or 'as wanted'}: {error}\n{tail}") from error
        return found or {}

    async def _check(self) -> None:
        if not self.may_die:
            await self.wasmer.process.check()

    async def wait_event(
        self, *, namespace: str = "default", reason: str = "", about: str = "", text: str = ""
    ) -> Document:
        """An Event with this reason, about the object of this name, with this text in its message. Events follow the change."""
        path = f"/api/v1/namespaces/{namespace}/events"

        async def written() -> Document | None:
            for event in (await self.cluster.request("GET", path))["items"]:
                has_reason = reason in ("", event.get("reason"))
                is_about = about in ("", event["involvedObject"].get("name"))
                if has_reason and is_about and text in event.get("message", ""):
                    found: Document = event
                    return found
            return None

        return await self.wait_until(written)

    async def wait_until(
        self, condition: Callable[[], Awaitable[Document | None]], *, timeout: float = 30
    ) -> Document:
        """The result of `condition`, once it is true. Raises TimeoutError, ProcessError if wasmer died."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._check()
                    if (found := await condition()) is not None:
                        return found
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            raise TimeoutError(await self.wasmer.process.tail()) from error

    async def wait_envoyfilter(
        self,
        condition: Callable[[Document], bool] = lambda _: True,
        *,
        name: str = "test",
        namespace: str = "default",
        timeout: float = 30,
    ) -> Document:
        """The EnvoyFilter, once it is there and fulfils the condition."""

        def fulfilled(found: Document | None) -> bool:
            return found is not None and condition(found)

        return await self.wait_object(envoyfilters(namespace, name), fulfilled, timeout=timeout)

    async def wait_gone(self, path: str, *, timeout: float = 300) -> None:
        """Wait until there is no such object. The garbage collector reconnects to a restarted API server after a while."""
        await self.cluster.client.wait_gone(path, timeout=timeout)


def pull_secret(host: str, *, namespace: str = "default") -> Document:
    """The Secret that the sample names, valid for the registry at `host`."""
    config = {"auths": {host: {"username": USER, "password": PASSWORD}}}
    data = base64.b64encode(json.dumps(config).encode()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": PULL_SECRET, "namespace": namespace},
        "data": {".dockerconfigjson": data},
    }


async def install_crd(kubectl: Client, *flags: str) -> None:
    """Apply AutoWasm's resource definition, as shipped, with kubectl and these `flags`."""
    await kubectl.run("apply", *flags, "-f", MANIFESTS / "crd.yaml")
    await clients.crds_established(kubectl, "autowasms.wasm.tcm.io")


async def install(
    cluster: Cluster, kubectl: Client | None = None, crd_flags: Sequence[str] = ()
) -> None:
    """Apply AutoWasm's resource definition and wasmer's RBAC, as shipped, in a cluster that has Istio's root namespace.

    With `kubectl` the resource definition is applied as in docs/install.md, with these flags: an API server of an old release refuses a
    server-side apply of fields that it does not know.
    """
    if kubectl is not None:
        await install_crd(kubectl, *crd_flags)
    else:
        crd = yaml.safe_load(await asyncio.to_thread((MANIFESTS / "crd.yaml").read_text))
        await cluster.client.apply_crds(crd)
    await cluster.apply(*await asyncio.to_thread(install_documents))


@asynccontextmanager
async def installed(
    cluster: Cluster,
    kubectl: Client,
    directory: Path,
    *,
    host: str | None = None,
    api: str | None = None,
    reach: Sequence[str] = wasmer.LOOPBACK_SOURCES,
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    crd_flags: Sequence[str] | None = None,
    fork: bool = True,
) -> AsyncIterator[Installation]:
    """Install on a cluster that has Istio's CRDs and its root namespace; wasmer's blob port is at `host` (address:port).

    `api` is the URL at which wasmer finds the API server, unless that is the server's own. With `crd_flags`, `kubectl
    apply` with these flags applies AutoWasm's resource definition (see `install`). `fork` as in `wasmer.controller`.
    """
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    await install(cluster, kubectl if crd_flags is not None else None, crd_flags or ())
    host = host or f"{ports.LOOPBACK}:{ports.free_port()}"
    kubeconfig = directory / KUBECONFIG
    await _write_service_account_kubeconfig(cluster, kubeconfig, api=api or cluster.url)
    async with (
        registry.distribution(directory / "registry", users={USER: PASSWORD}) as store,
        wasmer.controller(
            directory / "wasmer",
            kubeconfig=kubeconfig,
            host=host,
            plain_http=[store.host],
            reach=reach,
            arguments=arguments,
            env=env,
            fork=fork,
        ) as server,
    ):
        installation = Installation(directory, cluster, kubectl, store, server)
        await installation.add_pull_secret("default")
        yield installation


@asynccontextmanager
async def installed_without_istiod(
    cluster: Cluster,
    directory: Path,
    *,
    host: str | None = None,
    api: str | None = None,
    reach: Sequence[str] = wasmer.LOOPBACK_SOURCES,
    arguments: Sequence[str] = (),
    fork: bool = True,
) -> AsyncIterator[Installation]:
    """The same on a bare cluster: it also creates Istio's CRDs and root namespace."""
    kubectl = await clients.kubectl(directory / "home", kubeconfig=cluster.kubeconfig)
    await istio.apply_crds(cluster)
    await cluster.create_namespace(istio.ROOT_NAMESPACE)
    async with installed(
        cluster, kubectl, directory, host=host, api=api, reach=reach, arguments=arguments, fork=fork
    ) as installation:
        yield installation


async def _write_service_account_kubeconfig(cluster: Cluster, target: Path, *, api: str) -> None:
    answer = await cluster.request(
        "POST",
        f"/api/v1/namespaces/{istio.ROOT_NAMESPACE}/serviceaccounts/wasmer/token",
        body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    )
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"token": answer["status"]["token"]}
    for server in config["clusters"]:
        server["cluster"]["server"] = api
    await asyncio.to_thread(target.write_text, yaml.safe_dump(config))
