"""`wasmer check-uninstall`: whether wasmer can be uninstalled. The chart's pre-delete hook runs it.

Invariants: nothing is written; the exit status is 0 only after the API server has returned that no AutoWasm is left. While
their EnvoyFilters exist, every Pod that starts without wasmer gets no module and answers 503.
"""

import asyncio
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from autowasm.controller.publishing.publisher import AUTOWASMS
from autowasm.kube.client import KubeClient
from autowasm.kube.codec import decode_bounded
from autowasm.kube.errors import ApiError, NotFound, ServerError, TooManyRequests, Unreachable
from autowasm.net.pools import Pools
from autowasm.telemetry import logs

_DEADLINE: Final = 60.0
"""Seconds of retries while the API server is unavailable; helm waits 5 min for a hook."""
_PAUSE: Final = 2.0
_PAGE: Final = 500
_NAMED: Final = 10
_ANYWAY: Final = "To uninstall anyway: helm uninstall --no-hooks"

Document = dict[str, Any]


def run(kubeconfig: Path | None) -> int:
    """Print the result; exit status 0: no AutoWasms, 1: some, or not known. Raises UsageError without a configuration."""
    logs.configure(level="warning", form="console")  # the printed text is the Job's message
    agent = f"wasmer/{metadata.version('autowasm')}"
    found, answer = asyncio.run(_check(kubeconfig, agent=agent))
    print(answer)
    return 1 if found else 0


async def _check(kubeconfig: Path | None, *, agent: str) -> tuple[bool, str]:
    with Pools(transfers=1) as pools:
        async with KubeClient(kubeconfig=kubeconfig, pools=pools, user_agent=agent) as client:
            try:
                items, more = await list_autowasms(client)
            except ApiError as error:
                return True, f"AutoWasms cannot be listed: {error}. {_ANYWAY}"
    return bool(items or more), _report(items, more=more)


async def list_autowasms(client: KubeClient) -> tuple[list[Document], int]:
    """AutoWasms of the first page that are not being deleted, and the number beyond that page. Raises ApiError."""
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


def _report(items: Sequence[Document], *, more: int) -> str:
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
