"""`wasmer check-uninstall` and `wasmer check-download`, which the chart's pre-delete hook and its test (`helm test`) run.

Invariants: nothing is written. `check-uninstall` exits with status 0 only after the API server has reported that no AutoWasm is left:
while their EnvoyFilters exist, every Pod that starts without wasmer gets no module and answers 503. `check-download` exits with status
0 only after it received a module with the requested digest or, where no AutoWasm is published, after wasmer answered that it has no
such module.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import aiohttp
from msgspec import UNSET

from autowasm.api import status as statuses
from autowasm.api.status import ConditionType
from autowasm.controller.publisher import AUTOWASMS
from autowasm.kube.client import KubeClient
from autowasm.kube.codec import decode_bounded
from autowasm.kube.errors import ApiError, NotFound, ServerError, TooManyRequests, Unreachable
from autowasm.limits import ENVOY_MODULE_LIMIT
from autowasm.net.pools import Pools
from autowasm.telemetry import logs
from autowasm.units import format_size

_DEADLINE: Final = 60.0
"""Seconds of retries while the API server is unavailable; helm waits 5 min for a hook."""
_PAUSE: Final = 2.0
_PAGE: Final = 500
_NAMED: Final = 10
_ANYWAY: Final = "To uninstall anyway: helm uninstall --no-hooks"

Document = dict[str, Any]


def check_uninstall(kubeconfig: Path | None) -> int:
    """Print the result; exit status 0: no AutoWasms, 1: some exist, or not known. Raises UsageError without a configuration."""
    logs.configure(level="warning", form="console")  # the printed text is the Job's message
    agent = f"wasmer/{metadata.version('autowasm')}"
    found, answer = asyncio.run(_check_uninstall(kubeconfig, agent=agent))
    print(answer)
    return 1 if found else 0


async def _check_uninstall(kubeconfig: Path | None, *, agent: str) -> tuple[bool, str]:
    with Pools(transfers=1) as pools:
        async with KubeClient(kubeconfig=kubeconfig, pools=pools, user_agent=agent) as client:
            try:
                items, more = await list_autowasms(client)
            except ApiError as error:
                return True, f"AutoWasms cannot be listed: {error}. {_ANYWAY}"
    return bool(items or more), _uninstall_report(items, more=more)


async def list_autowasms(client: KubeClient) -> tuple[list[Document], int]:
    """AutoWasms of the first page that are not being deleted, and the number of those beyond that page. Raises ApiError."""
    until = time.monotonic() + _DEADLINE
    while True:
        try:
            body = await client.request("GET", AUTOWASMS.path(), query={"limit": str(_PAGE)})
        except NotFound:  # the CRD is absent
            return [], 0
        except (ServerError, TooManyRequests, Unreachable):
            if time.monotonic() > until:
                raise
            await asyncio.sleep(_PAUSE)
            continue
        document = await decode_bounded(body, most=len(body))
        left = [one for one in document["items"] if "deletionTimestamp" not in one["metadata"]]
        return left, int(document["metadata"].get("remainingItemCount") or 0)


def _uninstall_report(items: Sequence[Document], *, more: int) -> str:
    if not items and not more:
        return "The cluster has no AutoWasms: wasmer can be uninstalled."
    names = [f"{one['metadata']['namespace']}/{one['metadata']['name']}" for one in items]
    count = len(names) + more
    listed = ", ".join(names[:_NAMED]) + (", …" if count > _NAMED else "")
    return (
        f"Refused: the cluster has {count} AutoWasm{'s' if count != 1 else ''} ({listed}). "
        "Without wasmer, Pods that start later cannot load these filters and answer 503. Delete the AutoWasms "
        f"first (kubectl get aw -A). {_ANYWAY}"
    )


_TIMEOUT: Final = aiohttp.ClientTimeout(total=60.0, sock_connect=10.0)
_CHUNK: Final = 1 << 16
_ABSENT: Final = "0" * 64
"""The digest of no module."""


def check_download(kubeconfig: Path | None, url: str) -> int:
    """Print the result; exit status 0: downloaded. `url`: the Service's. Raises UsageError without a configuration."""
    logs.configure(level="warning", form="console")  # the printed text is the Job's message
    agent = f"wasmer/{metadata.version('autowasm')}"
    error, answer = asyncio.run(_check_download(kubeconfig, url.rstrip("/"), agent=agent))
    print(f"Failed: {error}" if error else answer)
    return 1 if error else 0


async def _check_download(kubeconfig: Path | None, url: str, *, agent: str) -> tuple[str, str]:
    """The reason of a failure, or an empty text, and the findings."""
    with Pools(transfers=1) as pools:
        async with KubeClient(kubeconfig=kubeconfig, pools=pools, user_agent=agent) as client:
            try:
                items, _ = await list_autowasms(client)
            except ApiError as error:
                return f"AutoWasms cannot be listed: {error}", ""
    found = sorted((_name(one), sha256) for one in items if (sha256 := _published(one)))
    name, sha256 = found[0] if found else ("", _ABSENT)
    address = f"{url}/wasm/{sha256}"
    try:
        async with aiohttp.ClientSession(
            timeout=_TIMEOUT, headers={"user-agent": agent}
        ) as session:
            status, digest, size = await _download(session, address)
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{address}: {(str(error) or type(error).__name__).splitlines()[0]}", ""
    if not found:
        if status != 404:
            return f"{address}: status {status} for a module that does not exist", ""
        return "", f"{url} answers. No AutoWasm is published, so there is no module to download."
    if status != 200:
        return f"{address}: status {status}, for the module of {name}", ""
    if digest != sha256:
        return (
            f"{address}: got {size} bytes with the digest sha256:{digest}, for the module of {name}",
            "",
        )
    return "", f"Downloaded the module of {name}, {format_size(size)}, from {address}."


def _name(document: dict[str, Any]) -> str:
    return f"{document['metadata']['namespace']}/{document['metadata']['name']}"


def _published(document: dict[str, Any]) -> str:
    """The digest of the module; empty: none is published, or the status belongs to another module."""
    status = statuses.read(document.get("status"))
    ready = status.condition(ConditionType.READY)
    if status.module is UNSET or ready is None or ready.status != "True":
        return ""
    return status.module.sha256


async def _download(session: aiohttp.ClientSession, url: str) -> tuple[int, str, int]:
    """Status, sha256 and size of the answer; reads at most the maximum size of a module."""
    digest, size = hashlib.sha256(), 0
    async with session.get(url, allow_redirects=False) as answer:
        async for chunk in answer.content.iter_chunked(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if size > ENVOY_MODULE_LIMIT:
                break
    return answer.status, digest.hexdigest(), size
