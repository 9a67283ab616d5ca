"""An API server that is too busy for wasmer, by its own flow control (API priority and fairness); it serves other clients as usual.

Not a fake: the server itself sends the 429s and their Retry-After. Invariant: within the context each call of wasmer is refused.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import yaml

from tests.parts import istio, wire
from tests.parts.installation import Document, Installation

FLOW_CONTROL = "/apis/flowcontrol.apiserver.k8s.io/v1"

_LEVEL = {
    "metadata": {"name": "full"},
    "spec": {
        "type": "Limited",
        "limited": {
            "nominalConcurrencyShares": 0,
            "lendablePercent": 0,
            "borrowingLimitPercent": 0,
            "limitResponse": {"type": "Reject"},
        },
    },
}
_WASMER = {"name": "wasmer", "namespace": istio.ROOT_NAMESPACE}
_EVERYTHING = {
    "verbs": ["*"],
    "apiGroups": ["*"],
    "resources": ["*"],
    "clusterScope": True,
    "namespaces": ["*"],
}
_SCHEMA = {
    "metadata": {"name": "full"},
    "spec": {
        "priorityLevelConfiguration": {"name": "full"},
        "matchingPrecedence": 50,
        "rules": [
            {
                "subjects": [{"kind": "ServiceAccount", "serviceAccount": _WASMER}],
                "resourceRules": [_EVERYTHING],
            }
        ],
    },
}


@asynccontextmanager
async def no_place_for_wasmer(it: Installation) -> AsyncIterator[None]:
    """The API server answers wasmer with 429 and Retry-After: a request that never ends occupies the only seat of its priority level."""
    await it.cluster.request("POST", f"{FLOW_CONTROL}/prioritylevelconfigurations", body=_LEVEL)
    schema = await it.cluster.request("POST", f"{FLOW_CONTROL}/flowschemas", body=_SCHEMA)
    config = yaml.safe_load(await asyncio.to_thread((it.directory / "wasmer.kubeconfig").read_text))
    headers = {"authorization": f"Bearer {config['users'][0]['user']['token']}"}

    async def ask() -> wire.Answer:
        url = f"{it.cluster.url}/api/v1/pods?limit=1"
        return await wire.request("GET", url, headers=headers, tls=it.cluster.context)

    async def in_force() -> Document | None:
        found = (await ask()).headers["x-kubernetes-pf-flowschema-uid"]
        return {} if found == schema["metadata"]["uid"] else None

    async def full() -> Document | None:
        answer = await ask()
        return {} if answer.status == 429 and "retry-after" in answer.headers else None

    await it.wait_until(in_force)
    holder = await wire.Connection.open(urlsplit(it.cluster.url).netloc, tls=it.cluster.context)
    try:
        lines = {**headers, "host": holder.host, "content-type": "application/json"}
        lines["content-length"] = "1000"  # the body, which is never sent
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        path = "/api/v1/namespaces/default/events"
        holder.writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode())
        await it.wait_until(full)
        yield
    finally:
        await holder.close()
        await it.cluster.request("DELETE", f"{FLOW_CONTROL}/flowschemas/full")
