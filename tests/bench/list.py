"""Listing Pods from the real API server, streaming and paged, with the peak memory and the retained memory.

The rivals watch one namespace with a tenth of the Pods: kubernetes_asyncio would take minutes and gigabytes for
all. The processor time per Pod is compared.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench import measure, pods
from tests.bench.plan import Plan
from tests.bench.table import Figure, Result, at_most, ratio_at_most
from tests.parts import goruntime
from tests.parts.kubernetes import Cluster, kubernetes

_RIVALS = "rivals"


async def run(plan: Plan) -> Result:
    """50 000 Pods, and another tenth of that for the rivals."""
    count = plan.pick(50_000, 400)
    few = count // 10
    found: dict[str, list[dict[str, Any]]] = {}
    async with kubernetes(
        plan.directory / "kubernetes",
        controller_manager=False,
        audit_level="None",
        go=goruntime.DEFAULT,
    ) as cluster:
        await _create(cluster, count, few)
        for _ in range(plan.repeats):
            for who in ("ours", "ours-paged"):
                found.setdefault(who, []).append(await _follow(cluster, who, count + few))
            for who in ("ours few", "model", "kopf"):
                one = await _follow(cluster, who.split()[0], few, namespace=_RIVALS)
                found.setdefault(who, []).append(one)
    return Result(_figures(found, count + few, few))


def _figures(found: dict[str, list[dict[str, Any]]], count: int, few: int) -> list[Figure]:
    def of(who: str, name: str, factor: float = 1.0) -> list[float]:
        return [factor * one[name] for one in found[who]]

    mib = 1 / (1 << 20)
    weight = Figure(
        "kept for a Pod, with indices and matcher", "B", of("ours", "kept", 1 / count),
        budget=at_most(450),
    )  # fmt: skip
    return [
        Figure(f"{count} Pods, streaming list", "s", of("ours", "seconds")),
        Figure(f"{count} Pods, streaming list: processor", "s", of("ours", "cpu"), budget=at_most(1)),
        Figure(f"{count} Pods, streaming list: longest turn", "ms", of("ours", "longest"), budget=at_most(10)),
        Figure(f"{count} Pods, in pages", "s", of("ours-paged", "seconds")),
        Figure(f"{count} Pods, in pages: processor", "s", of("ours-paged", "cpu"), budget=at_most(1)),
        Figure(f"{count} Pods, in pages: longest turn", "ms", of("ours-paged", "longest"), budget=at_most(10)),
        weight,
        Figure("memory at most while listing, above the start", "MiB", of("ours", "peak", mib)),
        Figure(
            f"processor for a Pod ({few})", "µs", of("ours few", "cpu", 1e6 / few),
            "kubernetes_asyncio", of("model", "cpu", 1e6 / few), ratio_at_most(1),
        ),
        Figure(
            f"processor for a Pod ({few})", "µs", of("ours few", "cpu", 1e6 / few),
            "kopf", of("kopf", "cpu", 1e6 / few), ratio_at_most(1),
        ),
        Figure(
            f"until {few} Pods are known", "s", of("ours few", "seconds"),
            "kopf", of("kopf", "seconds"), ratio_at_most(1),
        ),
    ]  # fmt: skip


async def _create(cluster: Cluster, count: int, few: int) -> None:
    for name in (_RIVALS, *(f"team-{number:03d}" for number in range(pods.NAMESPACES))):
        document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        await cluster.request("POST", "/api/v1/namespaces", body=document)

    def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
        for number in range(count + few):
            namespace = _RIVALS if number >= count else pods.namespace_of(number)
            path = f"/api/v1/namespaces/{namespace}/pods"
            yield "POST", path, pods.document(number, namespace=namespace)

    await cluster.each(calls())


async def _follow(cluster: Cluster, who: str, count: int, *, namespace: str = "") -> dict[str, Any]:
    command = [*measure.pinned(measure.SERVER_CPU), sys.executable, "-m", "tests.bench.informers"]
    words: list[str | Path] = [who, "--kubeconfig", cluster.kubeconfig, "--pods", str(count)]
    return await measure.json_of([*command, *words, "--namespace", namespace], timeout=600)
