"""Scenes for `wasmc explain` and `wasmc plan`: Pods, Services and wasmer as objects of a cluster without nodes.

Not facts for unit tests (`explained.py`).
"""

import json
from datetime import UTC, datetime
from typing import Any

from tests.parts import ports, wasmer, wat, wire
from tests.parts.clients import Completed
from tests.parts.installation import Document, Installation

ROOT = "istio-system"
PROXY = "docker.io/istio/proxyv2:1.24.0"


async def run_wasmc(
    installation: Installation, *arguments: str, stdin: str = "", **environment: str
) -> Completed:
    """`wasmc` as the administrator."""
    client = wasmer.wasmc(installation.directory, **environment)
    config = ("--kubeconfig", str(installation.cluster.kubeconfig))
    return await client.run(*arguments, *config, stdin=stdin.encode(), check=False)


async def explain(
    installation: Installation, namespace: str, *more: str
) -> tuple[int, dict[str, Document]]:
    """Exit status, and the findings by check (the worst of each)."""
    done = await run_wasmc(installation, "explain", "test", "-n", namespace, "--json", *more)
    assert done.returncode in {0, 1}, done.stderr
    ranks = ("ok", "note", "warning", "error")
    found: dict[str, Document] = {}
    for finding in json.loads(done.stdout)["findings"]:
        known = found.setdefault(finding["check"], finding)
        if ranks.index(finding["level"]) > ranks.index(known["level"]):
            found[finding["check"]] = finding
    return done.returncode, found


def wrong(found: dict[str, Document]) -> dict[str, str]:
    """Errors and warnings: level by check."""
    return {
        name: one["level"] for name, one in found.items() if one["level"] in {"error", "warning"}
    }


async def push_module(installation: Installation, value: str = "explained") -> str:
    """An image of a filter that adds this header."""
    return await installation.push(value, wat.header_filter(value))


def pod(namespace: str, *, name: str = "details", image: str = PROXY, proxy: bool = True) -> Any:
    """A Pod of `details` on port 9080, by default with a proxy."""
    containers = [
        {"name": "app", "image": "app:1", "ports": [{"containerPort": 9080, "protocol": "TCP"}]}
    ]
    if proxy:
        containers.append({"name": "istio-proxy", "image": image})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "details"}},
        "spec": {"containers": containers, "automountServiceAccountToken": False},
    }


def service(namespace: str, *, name: str = "http", port: int = 80, target: int = 9080) -> Any:
    """A Service of `details`."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "details", "namespace": namespace},
        "spec": {
            "selector": {"app": "details"},
            "ports": [{"name": name, "port": port, "targetPort": target, "protocol": "TCP"}],
        },
    }


def istio(kind: str, namespace: str, name: str, spec: Document) -> Document:
    """One of Istio's objects."""
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


async def install_server(installation: Installation) -> None:
    """wasmer's Service and a ready Pod of it, as a kubelet would report it."""
    labels = {"app": "wasmer"}
    container = {
        "name": "wasmer",
        "image": "wasmer:1",
        "args": ["controller"],
        "ports": [{"name": "http-wasm", "containerPort": 8081, "protocol": "TCP"}],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "wasmer-0", "namespace": ROOT, "labels": labels},
        "spec": {"containers": [container], "automountServiceAccountToken": False},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "wasmer", "namespace": ROOT},
        "spec": {
            "selector": labels,
            "ports": [
                {
                    "name": "http-wasm",
                    "port": 8081,
                    "targetPort": "http-wasm",
                    "protocol": "TCP",
                }
            ],
        },
    }
    await installation.apply(service, pod)
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    status["podIPs"] = [{"ip": "10.9.9.9"}]
    await set_pod_status(installation, "wasmer-0", ROOT, status)


async def set_pod_status(
    installation: Installation, name: str, namespace: str, status: Document
) -> None:
    """The status that a kubelet would report."""
    arguments = ("-n", namespace, "--subresource=status", "--type=merge")
    patch = json.dumps({"status": status})
    await installation.kubectl.run("patch", "pod", name, *arguments, "-p", patch)


async def install_good(installation: Installation, namespace: str, **fields: Any) -> None:
    """An AutoWasm, its Pod, which fetches the module, its Service, and wasmer, all without a problem."""
    await install_server(installation)
    image = await push_module(installation)
    await installation.apply(pod(namespace), service(namespace))
    ready: Document = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    ready["podIPs"] = [{"ip": ports.LOOPBACK}]  # the source address of our requests
    ready["startTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    await set_pod_status(installation, "details", namespace, ready)
    await installation.apply(installation.autowasm(image, namespace=namespace, **fields))
    found = await installation.wait_phase("Synced", namespace=namespace)
    digest = found["status"]["module"]["sha256"]
    answer = await wire.get(f"http://{installation.wasmer.host}/wasm/{digest}")
    assert answer.status == 200, answer
