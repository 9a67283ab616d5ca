"""`wasmer check-download`: whether wasmer's Service serves a published module. The chart's test (`helm test`) runs it.

Invariants: nothing is written; the exit status is 0 only after a module arrived with the digest that it was requested by or, where no
AutoWasm is published, after wasmer answered that it has no such module.
"""

import asyncio
import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import aiohttp
from msgspec import UNSET

from autowasm.api import status as statuses
from autowasm.api.status import ConditionType
from autowasm.cli.uninstall import list_autowasms
from autowasm.kube.client import KubeClient
from autowasm.kube.errors import ApiError
from autowasm.limits import ENVOY_MODULE_LIMIT
from autowasm.net.pools import Pools
from autowasm.telemetry import logs
from autowasm.units import format_size

_TIMEOUT: Final = aiohttp.ClientTimeout(total=60.0, sock_connect=10.0)
_CHUNK: Final = 1 << 16
_ABSENT: Final = "0" * 64
"""The digest of no module."""


def run(kubeconfig: Path | None, url: str) -> int:
    """Print the result; exit status 0: downloaded. `url`: of the Service. Raises UsageError without a configuration."""
    logs.configure(level="warning", form="console")  # the printed text is the Job's message
    agent = f"wasmer/{metadata.version('autowasm')}"
    error, answer = asyncio.run(_check(kubeconfig, url.rstrip("/"), agent=agent))
    print(f"Failed: {error}" if error else answer)
    return 1 if error else 0


async def _check(kubeconfig: Path | None, url: str, *, agent: str) -> tuple[str, str]:
    """Why it failed, or an empty text, and what was found."""
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
    """The digest of the module; empty: none is published, or the status is of another module."""
    status = statuses.read(document.get("status"))
    ready = status.condition(ConditionType.READY)
    if status.module is UNSET or ready is None or ready.status != "True":
        return ""
    return status.module.sha256


async def _download(session: aiohttp.ClientSession, url: str) -> tuple[int, str, int]:
    """Status, sha256 and bytes of the answer; no more bytes than a module may have."""
    digest, size = hashlib.sha256(), 0
    async with session.get(url, allow_redirects=False) as answer:
        async for chunk in answer.content.iter_chunked(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if size > ENVOY_MODULE_LIMIT:
                break
    return answer.status, digest.hexdigest(), size
