"""`python -m tests.bench.kopfpeer --kubeconfig FILE -n N`: a kopf operator that makes the writes of `crpeer`, and nothing else.

One EnvoyFilter for each AutoWasm, then its status. Prints the seconds from its start to the N-th written status that it saw.
"""

import argparse
import asyncio
import importlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

_DIGEST = "750d63889653e7117fcbc0831f10f0e1d3f7ec0c82fe5787b71d08a783e3393f"
_OURS = ("wasm.tcm.io", "v1alpha1", "autowasms")
_ISTIO = ("networking.istio.io", "v1alpha3")


async def operate(kubeconfig: Path, count: int) -> float:
    """Run until `count` AutoWasms are Synced."""
    os.environ["KUBECONFIG"] = str(kubeconfig)
    kopf: Any = importlib.import_module("kopf")
    client: Any = importlib.import_module("kubernetes_asyncio.client")
    config: Any = importlib.import_module("kubernetes_asyncio.config")
    registry = kopf.OperatorRegistry()
    synced: set[str] = set()
    all_synced, stop = asyncio.Event(), asyncio.Event()
    await config.load_kube_config(str(kubeconfig))
    async with client.ApiClient() as session:
        objects = client.CustomObjectsApi(session)

        @kopf.on.login(registry=registry)
        def login(**arguments: Any) -> Any:
            return kopf.login_with_kubeconfig(**arguments)

        @kopf.on.startup(registry=registry)
        def configure(settings: Any, **_: Any) -> None:
            settings.posting.enabled = False

        @kopf.on.create(*_OURS, registry=registry)
        async def created(
            name: str, namespace: str, body: Any, spec: Any, patch: Any, **_: Any
        ) -> None:
            document = _envoyfilter(name, spec)
            kopf.append_owner_reference(document, body)
            await objects.create_namespaced_custom_object(
                *_ISTIO, namespace, "envoyfilters", document
            )
            patch.status["phase"] = "Synced"
            patch.status["module"] = {"sha256": _DIGEST}

        @kopf.on.event(*_OURS, registry=registry)
        def seen(name: str, status: Any, **_: Any) -> None:
            if status.get("phase") == "Synced":
                synced.add(name)
            if len(synced) >= count:
                all_synced.set()

        begun = time.perf_counter()
        operator = asyncio.create_task(
            kopf.operator(registry=registry, clusterwide=True, standalone=True, stop_flag=stop)
        )
        waiting = asyncio.create_task(all_synced.wait())
        await asyncio.wait(
            [operator, waiting], return_when=asyncio.FIRST_COMPLETED, timeout=0.25 * count + 60
        )
        seconds = time.perf_counter() - begun
        if not all_synced.is_set():
            raise RuntimeError(f"kopf: {len(synced)} of {count} are Synced")
        stop.set()
        await asyncio.wait([operator], timeout=20)
        return seconds


def _envoyfilter(name: str, spec: Any) -> dict[str, Any]:
    code = {"remote": {"sha256": _DIGEST, "httpUri": {"uri": "wasmer", "timeout": "30s"}}}
    value = {"name": name, "vmConfig": {"runtime": "envoy.wasm.runtime.v8", "code": code}}
    return {
        "apiVersion": "/".join(_ISTIO),
        "kind": "EnvoyFilter",
        "metadata": {"name": name},
        "spec": {
            "workloadSelector": {"labels": dict(spec.get("selector", {}).get("matchLabels", {}))},
            "configPatches": [
                {
                    "applyTo": "HTTP_FILTER",
                    "match": {"context": "SIDECAR_INBOUND", "listener": {"portNumber": 9080}},
                    "patch": {
                        "operation": "INSERT_BEFORE",
                        "value": {"name": "wasm", "typedConfig": {"value": {"config": value}}},
                    },
                }
            ],
        },
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("-n", type=int, required=True)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(json.dumps({"seconds": asyncio.run(operate(arguments.kubeconfig, arguments.n))}))


if __name__ == "__main__":
    main()
