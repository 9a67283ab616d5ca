"""Synthetic Pods with Istio's sidecar: 12 KB of JSON each, as the API server sends them, 20 to a Deployment.

Made from one Pod in `tests/assets/bench/pod.json`. Only the fields that an API server validates are correct.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.replay import EVENT_END

REPLICAS = 20
NAMESPACES = 50

_TEMPLATE = Path(__file__).parents[1] / "assets/bench/pod.json"
_TIERS = ("web", "api", "batch", "cache")


def text(number: int, *, label: str = "v1", version: int = 0) -> str:
    """One Pod as JSON. `label` is the value of its label `version`."""
    return _fill(_template(), number, label, version)


def document(number: int, *, namespace: str = "") -> dict[str, Any]:
    """One Pod as a user would create it."""
    pod: dict[str, Any] = json.loads(text(number))
    pod.pop("status")
    metadata = pod["metadata"]
    for name in ("uid", "resourceVersion", "creationTimestamp", "managedFields", "ownerReferences"):
        metadata.pop(name, None)
    metadata["namespace"] = namespace or namespace_of(number)
    return pod


def namespace_of(number: int) -> str:
    """The namespace, the same for all replicas of a Deployment."""
    return f"team-{number // REPLICAS % NAMESPACES:03d}"


def path_of(number: int) -> str:
    """The path of the Pod at the API server."""
    name = f"{application(number)}-{number // REPLICAS:010x}-{number % REPLICAS:05d}"
    return f"/api/v1/namespaces/{namespace_of(number)}/pods/{name}"


def application(number: int) -> str:
    """The value of the label `app`."""
    return f"svc-{number // REPLICAS:05d}"


def events(numbers: Sequence[int], *, kind: str, label: str = "v1", first: int = 1) -> list[bytes]:
    """Lines of a watch; resourceVersions count from `first`."""
    template = _template()
    return [
        b'{"type":"%s","object":%s}%s'
        % (kind.encode(), _fill(template, number, label, first + turn).encode(), EVENT_END)
        for turn, number in enumerate(numbers)
    ]


def _template() -> str:
    return json.dumps(json.loads(_TEMPLATE.read_text()), separators=(",", ":"))


def _fill(template: str, number: int, label: str, version: int) -> str:
    deployment = number // REPLICAS
    digest = hashlib.md5(b"%d" % number, usedforsecurity=False).hexdigest()
    app, pod_hash = application(number), f"{deployment:010x}"
    for name, value in (
        ("$NAMESPACE", namespace_of(number)),
        ("$NAME", f"{app}-{pod_hash}-{number % REPLICAS:05d}"),
        ("$NODE", f"node-{number % 200}"),
        ("$UID", f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:]}"),
        ("$OWNER", f"{deployment:08x}-0000-4000-8000-000000000000"),
        ("$APP", app),
        ("$HASH", pod_hash),
        ("$IP", f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"),
        ("$TIER", _TIERS[deployment % len(_TIERS)]),
        ("$LABEL", label),
        ("$VERSION", str(version)),
    ):
        template = template.replace(name, value)
    return template
