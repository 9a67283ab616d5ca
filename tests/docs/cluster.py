"""A cluster in which pages run: API server, Istio's resources, registries, and wasmer once a page has installed it.

No Pod runs: what the chart's Pod would run is run as a process with its ServiceAccount, and Pods are reported as ready.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.docs import environment
from tests.docs.shell import Shell, shell
from tests.parts import clients, explaining, installation, istio, ports, registry, wasmer
from tests.parts.clients import Client
from tests.parts.kubernetes import ApiError, Cluster, kubernetes
from tests.parts.wasmer import Wasmer

_PODS = "/api/v1/pods?fieldSelector=status.phase%3DPending"
_TOKEN = "/api/v1/namespaces/istio-system/serviceaccounts/wasmer/token"


@dataclass(slots=True)
class PageCluster:
    """What stands, and who comes to it."""

    directory: Path
    cluster: Cluster
    kubectl: Client
    open_registry: str
    private_registry: str
    release: str = ""
    release_namespace: str = "default"

    @asynccontextmanager
    async def reader(self, name: str, *, registry: str = "") -> AsyncIterator[Shell]:
        """A reader in a namespace of this name, with a Pod and a Service called details."""
        await self.cluster.create_namespace(name)
        await self.cluster.wait_for(f"/api/v1/namespaces/{name}/serviceaccounts/default")
        objects = [explaining.pod(name), explaining.service(name)]
        await self.kubectl.run("apply", "-f", "-", stdin=yaml.safe_dump_all(objects).encode())
        home = self.directory / name
        variables = await asyncio.to_thread(environment.prepare, home)
        config = yaml.safe_load(await asyncio.to_thread(self.cluster.kubeconfig.read_text))
        for context in config["contexts"]:
            context["context"]["namespace"] = name
        await asyncio.to_thread((home / "kubeconfig").write_text, yaml.safe_dump(config))
        variables |= {"KUBECONFIG": str(home / "kubeconfig"), "RELEASE": self.release}
        variables["HELM_NAMESPACE"] = self.release_namespace
        variables |= {"REGISTRY": f"{registry or self.open_registry}/{name}"}
        variables |= {"NAMESPACE": name, "REGISTRY_HOST": registry or self.open_registry}
        async with shell(home, variables) as terminal:
            yield terminal

    async def find_release(self) -> None:
        """The release that a page has installed."""
        helm = await clients.helm(self.directory / "helm", kubeconfig=self.cluster.kubeconfig)
        found = json.loads((await helm.run("list", "-A", "--output=json")).stdout)
        ((self.release, self.release_namespace),) = [
            (one["name"], one["namespace"]) for one in found
        ]


@asynccontextmanager
async def page_cluster(directory: Path) -> AsyncIterator[PageCluster]:
    """Without wasmer; it runs as soon as its Deployment is there."""
    users = {installation.USER: installation.PASSWORD}
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(kubernetes(directory / "kubernetes"))
        kubectl = await clients.kubectl(directory / "kubectl", kubeconfig=cluster.kubeconfig)
        await istio.apply_crds(cluster)
        await cluster.create_namespace(istio.ROOT_NAMESPACE)
        public = await stack.enter_async_context(registry.distribution(directory / "open"))
        private = await stack.enter_async_context(
            registry.distribution(directory / "private", users=users)
        )
        found = PageCluster(directory, cluster, kubectl, public.host, private.host)
        task = asyncio.create_task(_run_pods(found), name="kubelet")
        stack.push_async_callback(_end, task)
        yield found


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel it; an error of its own comes out."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _run_pods(found: PageCluster) -> None:
    """What kubelets would do, until cancelled."""
    async with AsyncExitStack() as stack:
        running = False
        while True:
            for pod in (await found.cluster.request("GET", _PODS))["items"]:
                labels = pod["metadata"].get("labels", {})
                if labels.get("app") == "wasmer" and not running:
                    await stack.enter_async_context(await _wasmer(found))
                    running = True
                if labels.get("app") in {"wasmer", "details"}:
                    await _report(found.cluster, pod)
            await asyncio.sleep(0.2)


async def _report(cluster: Cluster, pod: dict[str, object]) -> None:
    metadata = pod["metadata"]
    assert isinstance(metadata, dict)
    ready = {"type": "Ready", "status": "True"}
    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
    with suppress(ApiError):  # changed or gone meanwhile: the next round
        body = {**pod, "status": {"phase": "Running", "conditions": [ready]}}
        await cluster.request("PUT", path, body=body)


async def _wasmer(found: PageCluster) -> AbstractAsyncContextManager[Wasmer]:
    """The chart's program with the chart's rights."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = await found.cluster.request("POST", _TOKEN, body=body)
    config = yaml.safe_load(await asyncio.to_thread(found.cluster.kubeconfig.read_text))
    for user in config["users"]:
        user["user"] = {"token": answer["status"]["token"]}
    target = found.directory / "wasmer.kubeconfig"
    await asyncio.to_thread(target.write_text, yaml.safe_dump(config))
    return wasmer.controller(
        found.directory / "wasmer",
        kubeconfig=target,
        host=f"{ports.LOOPBACK}:{ports.free_port()}",
        plain_http=[found.open_registry, found.private_registry],
        arguments=["--peers-service", ""],
    )
