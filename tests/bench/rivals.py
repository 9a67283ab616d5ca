"""Rivals that follow Pods: kubernetes_asyncio's list and Watch, and a kopf operator with an index.

Each keeps the same state as ours: the labels of all Pods. Each is used as its documentation shows.
"""

import asyncio
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

_PAGE = 500


class _Meter(Protocol):
    def read(self, **more: Any) -> dict[str, Any]: ...


Meters = Callable[[], _Meter]


async def follow_with_kubernetes_asyncio(
    kubeconfig: Path, namespace: str, wanted: int, meters: Meters, *, models: bool, watch: bool
) -> dict[str, Any]:
    """`watch` False: list them in pages; True: take `wanted` events."""
    client: Any = importlib.import_module("kubernetes_asyncio.client")
    config: Any = importlib.import_module("kubernetes_asyncio.config")
    watching: Any = importlib.import_module("kubernetes_asyncio.watch")
    await config.load_kube_config(str(kubeconfig))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    heard = 0
    async with client.ApiClient() as api:
        core = client.CoreV1Api(api)
        await client.VersionApi(api).get_code() if not watch else None
        meter = meters()
        if watch:
            # Without a type it returns models, by the API's return type.
            stream = watching.Watch(**({} if models else {"return_type": "object"}))
            async for event in stream.stream(core.list_pod_for_all_namespaces):
                _keep(rows, event["object"])
                heard += 1
                if heard >= wanted:
                    break
            await stream.close()
            return meter.read(pods=len(rows), heard=heard)
        token = ""
        while len(rows) < wanted:
            more: dict[str, Any] = {"_continue": token} if token else {}
            page = await core.list_namespaced_pod(namespace, limit=_PAGE, **more)
            for pod in page.items:
                _keep(rows, pod)
            token = page.metadata._continue
            if not token:
                break
        return meter.read(pods=len(rows), heard=len(rows))


def _keep(rows: dict[tuple[str, str], dict[str, str]], pod: Any) -> None:
    if isinstance(pod, dict):
        meta = pod["metadata"]
        rows[meta["namespace"], meta["name"]] = meta.get("labels") or {}
    else:
        rows[pod.metadata.namespace, pod.metadata.name] = pod.metadata.labels or {}


async def follow_with_kopf(
    kubeconfig: Path, namespace: str, wanted: int, meters: Meters
) -> dict[str, Any]:
    """An operator with an index of Pods by namespace and labels."""
    import os  # noqa: PLC0415

    os.environ["KUBECONFIG"] = str(kubeconfig)
    kopf: Any = importlib.import_module("kopf")
    registry = kopf.OperatorRegistry()
    enough, stop = asyncio.Event(), asyncio.Event()
    seen: set[tuple[str, str]] = set()

    @kopf.on.login(registry=registry)
    def login(**arguments: Any) -> Any:
        return kopf.login_with_kubeconfig(**arguments)

    @kopf.on.startup(registry=registry)
    def configure(settings: Any, **_: Any) -> None:
        settings.posting.enabled = False

    @kopf.index("pods", registry=registry)
    def by_labels(namespace: str, name: str, labels: Any, **_: Any) -> Any:
        seen.add((namespace, name))
        if len(seen) >= wanted:
            enough.set()
        return {(namespace, tuple(sorted(labels.items()))): name}

    meter = meters()
    operator = asyncio.create_task(
        kopf.operator(registry=registry, namespaces=[namespace], standalone=True, stop_flag=stop)
    )
    waiting = asyncio.create_task(enough.wait())
    await asyncio.wait([operator, waiting], return_when=asyncio.FIRST_COMPLETED, timeout=280)
    if not enough.is_set():
        raise RuntimeError(f"kopf saw {len(seen)} of {wanted} Pods")
    found: dict[str, Any] = meter.read(pods=len(seen), heard=len(seen))
    stop.set()
    await asyncio.wait([operator], timeout=20)
    return found
