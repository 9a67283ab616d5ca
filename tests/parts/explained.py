"""Facts for tests of `autowasm.explain`: valid, unless a test changes them.

Objects have the form of the API and are decoded like those of a page, so the tests check field names, too.
"""

from typing import Any, TypeVar

import msgspec

from autowasm.api import status
from autowasm.api.envoyfilter import render
from autowasm.api.record import Record
from autowasm.api.validation import parse
from autowasm.digest import sha256_hex
from autowasm.explain.facts import Facts, ServerFact
from autowasm.explain.finding import Check, Finding
from autowasm.explain.objects import EndpointSlice, Namespace, Pod, Service
from autowasm.kube.resources import ObjectKey
from autowasm.settings import EnvoyFetch

T = TypeVar("T")
Document = dict[str, Any]

IMAGE = "registry.example/team/filter:v1"
SHA256 = sha256_hex("a" * 64)
RECORD = Record(
    source=f"registry:{IMAGE}",
    sha256=SHA256,
    size=10,
    abi="0.2.1",
    image=f"registry.example/team/filter@sha256:{'b' * 64}",
)


def decoded(kind: type[T], document: Document) -> T:
    """Decoded like an object in a page of the API server."""
    return msgspec.json.decode(msgspec.json.encode(document), type=kind, strict=False)


def autowasm(**fields: Any) -> Document:
    """A published AutoWasm `team/test`; `fields` go into `spec.filter`."""
    module = msgspec.to_builtins(RECORD)
    return {
        "apiVersion": "wasm.tcm.io/v1alpha1",
        "kind": "AutoWasm",
        "metadata": {"name": "test", "namespace": "team", "uid": "u1", "generation": 1},
        "spec": {
            "filter": {
                "source": {"registry": {"image": IMAGE}},
                "applyPorts": [9080],
                **fields,
            },
            "selector": {"matchLabels": {"app": "details"}},
        },
        "status": {
            "phase": "Synced",
            "observedGeneration": 1,
            "message": "published",
            "module": module,
            "conditions": [
                {"type": "Fetched", "status": "True", "reason": "Fetched"},
                {"type": "Ready", "status": "True", "reason": "Synced"},
            ],
        },
    }


def pod(
    name: str = "details-1",
    *,
    namespace: str = "team",
    image: str = "istio/proxyv2:1.26.1",
    args: tuple[str, ...] = ("proxy", "sidecar"),
    proxy: bool = True,
    ip: str = "10.0.0.1",
    **metadata: Any,
) -> Pod:
    """A ready Pod of `details` on port 9080."""
    containers: list[Document] = [
        {"name": "app", "ports": [{"name": "web", "containerPort": 9080}]},
    ]
    if proxy:
        containers.append({"name": "istio-proxy", "image": image, "args": list(args)})
    return decoded(
        Pod,
        {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {"app": "details"},
                **metadata,
            },
            "spec": {"containers": containers},
            "status": {
                "phase": "Running",
                "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
    )


def server_pod(*, ready: str = "True") -> Pod:
    """A Pod of wasmer."""
    return decoded(
        Pod,
        {
            "metadata": {"name": "wasmer-0", "namespace": "istio-system", "labels": {"app": "w"}},
            "spec": {
                "containers": [
                    {"name": "wasmer", "ports": [{"name": "http-wasm", "containerPort": 8081}]}
                ]
            },
            "status": {
                "podIPs": [{"ip": "10.9.9.9"}],
                "conditions": [{"type": "Ready", "status": ready}],
            },
        },
    )


def service(name: str = "http", *, port: int = 80, target: int | str = 9080) -> Service:
    """A Service of `details`."""
    return decoded(
        Service,
        {
            "metadata": {"name": "details", "namespace": "team"},
            "spec": {
                "selector": {"app": "details"},
                "ports": [{"name": name, "port": port, "targetPort": target}],
            },
        },
    )


def server_service(**annotations: str) -> Service:
    """Wasmer's."""
    return decoded(
        Service,
        {
            "metadata": {
                "name": "wasmer",
                "namespace": "istio-system",
                "annotations": annotations,
            },
            "spec": {
                "selector": {"app": "w"},
                "ports": [{"name": "http-wasm", "port": 8081, "targetPort": "http-wasm"}],
            },
        },
    )


def endpoints(*addresses: str) -> EndpointSlice:
    """Wasmer's."""
    return decoded(
        EndpointSlice,
        {
            "metadata": {"name": "wasmer-x", "namespace": "istio-system"},
            "endpoints": [{"addresses": [address]} for address in addresses],
        },
    )


def namespaces(**labels: dict[str, str]) -> dict[str, Namespace]:
    """`team` and `istio_system` (with an underscore) with these labels."""
    return {
        name: decoded(Namespace, {"metadata": {"name": name, "labels": labels.get(key, {})}})
        for key, name in (("team", "team"), ("istio_system", "istio-system"))
    }


def facts(document: Document | None = None, **changes: Any) -> Facts:
    """Facts without a problem, except for `changes`."""
    document = document or autowasm()
    parsed = parse(document)
    desired = render(parsed, RECORD, EnvoyFetch())
    good = Facts(
        key=ObjectKey("team", "test"),
        document=document,
        autowasm=parsed,
        status=status.read(document.get("status")),
        server=ServerFact(known=True),
        live=desired,
        desired=desired,
        namespaces=namespaces(),
        pods=(pod(),),
        services=(service(),),
        wasmer_service=server_service(),
        wasmer_pods=(server_pod(),),
        wasmer_endpoints=(endpoints("10.9.9.9"),),
    )
    return msgspec.structs.replace(good, **changes)


def findings_of(check: Check, given: Facts) -> dict[str, Finding]:
    """The findings of the check, by name."""
    return {finding.check: finding for finding in check(given)}
