"""The chart and the manifests, installed as in docs/install.md, on the API server of each release of Kubernetes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.parts import clients, istio, releases
from tests.parts.clients import Client
from tests.parts.installation import ACCOUNT, MANIFESTS
from tests.parts.kubernetes import Cluster, kubernetes
from tools.generate.paths import CHART

pytestmark = [pytest.mark.versions, pytest.mark.timeout(300)]

IMAGE = "--set=image.repository=r.example/wasmer"
# The change to install.yaml that docs/install.md requires for servers before 1.21.
BUDGETS = {releases.OLDEST_KUBERNETES: "policy/v1beta1"}
# The API server of 1.16 rejects a patch of a resource definition that contains numbers ("cannot convert int64 to float64").
UPGRADES = {releases.OLDEST_KUBERNETES: "replace"}


@dataclass(frozen=True)
class EmptyCluster:
    """A cluster with Istio's resources and without ours."""

    release: releases.Kubernetes
    cluster: Cluster
    kubectl: Client
    helm: Client

    async def check(self) -> None:
        """The resource definition, wasmer's workload, and the permissions of its account exist."""
        await clients.crds_established(self.kubectl, "autowasms.wasm.tcm.io")
        for kind in ("deployment", "service", "poddisruptionbudget"):
            await self.kubectl.run("get", kind, "wasmer", "-n", istio.ROOT_NAMESPACE)
        for verb, resource in (("watch", "autowasms"), ("create", "envoyfilters")):
            asked = ("auth", "can-i", verb, resource, "-A", f"--as={ACCOUNT}")
            assert (await self.kubectl.run(*asked)).stdout.strip() == "yes", asked


@pytest_asyncio.fixture(
    params=[
        pytest.param(one, id=f"kubernetes-{version}", marks=pytest.mark.xdist_group(str(one)))
        for version, one in {one.kubernetes.version: one for one in releases.COMBINATIONS}.items()
    ],
)
async def empty_cluster(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[EmptyCluster]:
    chosen: releases.Combination = request.param
    async with kubernetes(
        tmp_path / "kubernetes", release=chosen.kubernetes, controller_manager=False
    ) as cluster:
        await istio.apply_crds(cluster, chosen.istio)
        await cluster.create_namespace(istio.ROOT_NAMESPACE)
        home, kubeconfig = tmp_path / "home", cluster.kubeconfig
        kubectl = await clients.kubectl(home, kubeconfig=kubeconfig)
        helm = await clients.helm(home, kubeconfig=kubeconfig)
        yield EmptyCluster(chosen.kubernetes, cluster, kubectl, helm)


async def test_chart_is_installed_and_upgraded(empty_cluster: EmptyCluster) -> None:
    await empty_cluster.helm.run("install", "wasmer", CHART, IMAGE, timeout=120)
    await empty_cluster.check()
    await empty_cluster.helm.run("upgrade", "wasmer", CHART, IMAGE, "--set=replicas=3", timeout=120)
    await empty_cluster.check()


async def test_manifests_are_applied_and_applied_again(empty_cluster: EmptyCluster) -> None:
    text = await asyncio.to_thread((MANIFESTS / "install.yaml").read_text)
    budget = BUDGETS.get(empty_cluster.release, "policy/v1")
    text = text.replace("apiVersion: policy/v1\n", f"apiVersion: {budget}\n")
    flags = empty_cluster.release.apply_flags
    for verb in ("apply", UPGRADES.get(empty_cluster.release, "apply")):
        await empty_cluster.kubectl.run(verb, *flags, "-f", MANIFESTS / "crd.yaml")
        await empty_cluster.kubectl.run("apply", *flags, "-f", "-", stdin=text.encode())
        await empty_cluster.check()
