"""A real Kubernetes control plane: etcd, kube-apiserver, kube-controller-manager. No nodes, so no Pod ever runs.

Everything that needs no node works as in a cluster: RBAC, CRDs, watches, tokens, garbage collection, Leases.
Invariant: the API server keeps its port and its data through `stop_api` and `start_api`.
"""

import asyncio
import json
import os
import secrets
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from tests.parts import goruntime, kubeapi, ports, provision, releases, wire
from tests.parts.certificates import Authority
from tests.parts.kubeapi import ADMIN, ApiError, Document, KubeApi
from tests.parts.process import PORT_ATTEMPTS, Process, ProcessError
from tests.parts.registry import TlsFiles

__all__ = ["ADMIN", "ApiError", "Cluster", "kubernetes"]

AuditLevel = Literal["None", "Metadata", "Request", "RequestResponse"]

_READY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running control plane. `tokens` are the users' bearer tokens, by name; `etcd` is the URL of its store."""

    url: str
    etcd: str
    store: Process
    directory: Path
    tls: TlsFiles
    tokens: Mapping[str, str]
    api: Process
    context: ssl.SSLContext
    client: KubeApi
    """Calls of the API server; the methods of `Cluster` are the most used ones."""
    controller_manager: Process | None = None

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of the administrator."""
        return self.kubeconfig_of(ADMIN)

    def kubeconfig_of(self, user: str) -> Path:
        """The kubeconfig of one of the users given at the start."""
        return self.directory / f"{user}.kubeconfig"

    @property
    def audit_log(self) -> Path:
        """The audit log: one line of JSON for each request, complete as soon as the request is answered."""
        return self.directory / "audit.jsonl"

    async def start_api(self) -> None:
        """Run the API server (again). Raises ProcessError."""
        await self.api.start(ready=self._ready, timeout=_READY_SECONDS)

    async def stop_api(self) -> None:
        """End the API server: from now on connections are refused, watches are closed."""
        await self.client.close()
        await self.api.stop(timeout=5)

    async def start_etcd(self) -> None:
        """Run etcd (again), with its data. Raises ProcessError."""
        await self.store.start(ready=partial(_etcd_is_ready, self.etcd), timeout=_READY_SECONDS)

    async def kill_etcd(self) -> None:
        """kill -9: after a while the API server answers only with errors."""
        await self.store.kill()

    async def start_controller_manager(self) -> None:
        """Run the controller manager (again). Raises ProcessError."""
        assert self.controller_manager is not None
        path = "/api/v1/namespaces/default/serviceaccounts/default"

        async def ready() -> bool:
            await self.wait_for(path, timeout=2)
            return True

        await self.controller_manager.start(ready=ready, timeout=_READY_SECONDS)

    async def stop_controller_manager(self) -> None:
        """End the controller manager: from now on nothing is garbage-collected."""
        assert self.controller_manager is not None
        await self.controller_manager.stop(timeout=5)

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        user: str = ADMIN,
        timeout: float = 30,
    ) -> Document:
        """One call of the API, as JSON. Raises ApiError on a status other than 2xx, and OSError if there is no answer."""
        return await self.client.request(method, path, body=body, user=user, timeout=timeout)

    async def compact(self) -> int:
        """Compact etcd to the newest version of each object; returns the revision."""
        everything = json.dumps({"key": "AA==", "range_end": "AA==", "count_only": True})
        answer = await wire.request("POST", f"{self.etcd}/v3/kv/range", body=everything.encode())
        revision = int(json.loads(answer.body)["header"]["revision"])
        body = json.dumps({"revision": str(revision), "physical": True}).encode()
        answer = await wire.request("POST", f"{self.etcd}/v3/kv/compaction", body=body)
        kubeapi.check(answer, "POST", "/v3/kv/compaction")
        return revision

    async def each(
        self, calls: Iterable[tuple[str, str, Mapping[str, Any] | None]], *, connections: int = 4
    ) -> None:
        """Many calls (method, path, body) as the administrator, over this many connections.

        Raises ApiError on a status other than 2xx, and OSError, within an ExceptionGroup.
        """
        await self.client.each(calls, connections=connections)

    async def apply(self, *documents: Mapping[str, Any]) -> list[Document]:
        """Server-side apply by the administrator; the stored objects. Raises ApiError."""
        return await self.client.apply(*documents)

    async def create_namespace(self, name: str, *, labels: Mapping[str, str] | None = None) -> None:
        """Create the namespace; with a controller manager, wait for its default ServiceAccount, which Pods require."""
        metadata = {"name": name, "labels": dict(labels or {})}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        await self.request("POST", "/api/v1/namespaces", body=body)
        if self.controller_manager is not None:
            await self.wait_for(f"/api/v1/namespaces/{name}/serviceaccounts/default")

    async def wait_for(self, path: str, *, timeout: float = 120) -> Document:
        """The object at `path`, as soon as it exists. Raises TimeoutError."""
        return await self.client.wait_for(path, timeout=timeout)

    async def _ready(self) -> bool:
        return (await self.client.call("GET", "/readyz", timeout=5)).status == 200


@asynccontextmanager
async def kubernetes(
    directory: Path,
    *,
    users: Mapping[str, Sequence[str]] | None = None,
    controller_manager: bool = True,
    audit_level: AuditLevel = "Metadata",
    extra: Sequence[str] = (),
    go: Mapping[str, str] = goruntime.LARGE,
    release: releases.Kubernetes = releases.KUBERNETES,
) -> AsyncIterator[Cluster]:
    """Run a control plane with all its files in `directory`; ready in some seconds, uses up to 1600 MB of memory.

    `users` are users besides the administrator: name to groups (RBAC decides their permissions). Without the
    `controller_manager` nothing is garbage-collected, namespaces are never removed, and Pods need no ServiceAccount.
    `extra` are more flags of kube-apiserver, and `go` is its environment for Go's runtime. Raises ProcessError with the log of what failed.
    """
    groups = {**(users or {}), ADMIN: ("system:masters",)}
    tokens = {name: secrets.token_hex(16) for name in groups}
    async with AsyncExitStack() as stack:
        etcd_url, store = await _start_etcd(stack, directory)
        cluster = await _start_api(
            stack,
            directory,
            etcd=etcd_url,
            store=store,
            tokens=tokens,
            groups=groups,
            flags=[
                *([] if controller_manager else ["--disable-admission-plugins=ServiceAccount"]),
                *extra,
            ],
            audit_level=audit_level,
            go=go,
            release=release,
        )
        if controller_manager:
            process = await _make_controller_manager(cluster, release)
            cluster = replace(cluster, controller_manager=process)
            await cluster.start_controller_manager()
            stack.push_async_callback(cluster.stop_controller_manager)
        yield cluster


async def _etcd_is_ready(url: str) -> bool:
    return (await wire.get(f"{url}/health", timeout=2)).status == 200


async def _start_etcd(stack: AsyncExitStack, directory: Path) -> tuple[str, Process]:
    program = await asyncio.to_thread(provision.etcd)
    for attempts_left in reversed(range(PORT_ATTEMPTS)):
        client, peer = (f"http://{ports.LOOPBACK}:{port}" for port in ports.free_ports(2))
        command: list[str | Path] = [
            program,
            f"--data-dir={directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # the data need not outlive the test
            "--log-level=warn",
        ]
        process = Process(
            "etcd", command, log=directory / "etcd.log", env={**os.environ, **goruntime.SMALL}
        )
        try:
            await process.start(ready=partial(_etcd_is_ready, client), timeout=_READY_SECONDS)
        except ProcessError as error:
            if error.port_taken and attempts_left:
                continue
            raise
        stack.push_async_callback(process.stop, timeout=5)
        return client, process
    raise AssertionError("unreachable")


async def _start_api(
    stack: AsyncExitStack,
    directory: Path,
    *,
    etcd: str,
    store: Process,
    tokens: Mapping[str, str],
    groups: Mapping[str, Sequence[str]],
    flags: Sequence[str],
    audit_level: AuditLevel,
    go: Mapping[str, str],
    release: releases.Kubernetes,
) -> Cluster:
    program = await asyncio.to_thread(provision.kube_apiserver, release)
    tls = await asyncio.to_thread(_write_files, directory, tokens, groups, audit_level)
    context = await asyncio.to_thread(ssl.create_default_context, cafile=str(tls.authority))
    # Python 3.13 requires key identifiers, which our authority omits, like those of many clusters.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    for attempts_left in reversed(range(PORT_ATTEMPTS)):
        port = ports.free_port()
        command: list[str | Path] = [program, *_api_flags(directory, tls, port)]
        command += [f"--etcd-servers={etcd}", *release.api_flags, *flags]
        process = Process(
            "kube-apiserver",
            command,
            log=directory / "kube-apiserver.log",
            env={**os.environ, **go},
        )
        url = f"https://{ports.LOOPBACK}:{port}"
        client = KubeApi(url, tokens=tokens, tls=context)
        cluster = Cluster(url, etcd, store, directory, tls, tokens, process, context, client)
        await asyncio.to_thread(_write_kubeconfigs, cluster)
        try:
            await cluster.start_api()
        except ProcessError as error:
            if error.port_taken and attempts_left:
                continue
            raise
        stack.push_async_callback(cluster.stop_api)
        return cluster
    raise AssertionError("unreachable")


async def _make_controller_manager(cluster: Cluster, release: releases.Kubernetes) -> Process:
    program = await asyncio.to_thread(provision.kube_controller_manager, release)
    directory = cluster.directory
    command: list[str | Path] = [
        program,
        f"--kubeconfig={cluster.kubeconfig}",
        f"--service-account-private-key-file={cluster.tls.key}",
        f"--root-ca-file={cluster.tls.authority}",
        "--leader-elect=false",
        "--secure-port=0",
        *release.controller_manager_flags,
    ]
    log = directory / "kube-controller-manager.log"
    return Process(
        "kube-controller-manager", command, log=log, env={**os.environ, **goruntime.SMALL}
    )


def _api_flags(directory: Path, tls: TlsFiles, port: int) -> list[str]:
    return [
        f"--bind-address={ports.LOOPBACK}",
        f"--secure-port={port}",
        f"--cert-dir={directory / 'certificates'}",
        f"--tls-cert-file={tls.certificate}",
        f"--tls-private-key-file={tls.key}",
        # One key pair serves TLS and signs tokens: two would add nothing here.
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={tls.certificate}",
        f"--service-account-signing-key-file={tls.key}",
        "--authorization-mode=RBAC",
        f"--token-auth-file={directory / 'tokens.csv'}",
        "--service-cluster-ip-range=10.96.0.0/16",
        # A loopback address is not allowed as an endpoint of the service `kubernetes`.
        "--endpoint-reconciler-type=none",
        f"--audit-policy-file={directory / 'audit-policy.yaml'}",
        f"--audit-log-path={directory / 'audit.jsonl'}",
        "--audit-log-maxsize=10000",  # MB; readers keep positions, which a rotation at the default of 100 MB would move
    ]


def _write_files(
    directory: Path,
    tokens: Mapping[str, str],
    groups: Mapping[str, Sequence[str]],
    audit_level: AuditLevel,
) -> TlsFiles:
    directory.mkdir(parents=True, exist_ok=True)
    rows = [f'{token},{name},{name},"{",".join(groups[name])}"\n' for name, token in tokens.items()]
    (directory / "tokens.csv").write_text("".join(rows))
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": audit_level}],
    }
    (directory / "audit-policy.yaml").write_text(yaml.safe_dump(policy))
    return Authority("test cluster").issue(directory / "certificates", name="apiserver")


def _write_kubeconfigs(cluster: Cluster) -> None:
    for user, token in cluster.tokens.items():
        server = {"server": cluster.url, "certificate-authority": str(cluster.tls.authority)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        cluster.kubeconfig_of(user).write_text(yaml.safe_dump(document, sort_keys=False))
