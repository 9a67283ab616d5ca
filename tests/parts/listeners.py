"""Configuration that istiod renders for proxies: each listener's filter chains with their HTTP filters, and the clusters. Takes a second.

Istio's own renderer as a program (`assets/listeners`), without a control plane and Envoy, for tests of many cases. Tests
with `istio.py` show that a proxy accepts the configuration, and its effects. Invariant: a rendering raises an error if istiod
ignores one of its objects.
"""

import asyncio
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from tests.parts import goruntime, provision

_SECONDS = 120
"""The program takes 1 s; the machine may be busy."""

ProxyType = Literal["sidecar", "router", "waypoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """One proxy of the rendering. `metadata` is that of its node, as `ISTIO_META_…` sets it: strings."""

    name: str
    type: ProxyType = "sidecar"
    address: str
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chain:
    """A filter chain. `filters` are its HTTP filters in order (`{"name": …, "typedConfig": …}`), None without HTTP."""

    listener: str
    name: str
    port: int | None
    """`filterChainMatch.destinationPort`."""
    filters: tuple[Mapping[str, Any], ...] | None

    @property
    def names(self) -> list[str]:
        """Of its HTTP filters; the name of the plugin after a slash for a Wasm filter."""
        return [_shown(one) for one in self.filters or ()]


@dataclass(frozen=True, slots=True)
class Rendered:
    """The configuration of one proxy. `digests`: of each listener's bytes; with the same digest the proxy sees no change."""

    chains: tuple[Chain, ...]
    digests: Mapping[str, str]
    clusters: tuple[str, ...]

    def of(self, listener: str) -> Iterator[Chain]:
        """The HTTP filter chains of this listener. Raises KeyError if the proxy does not have it."""
        if listener not in self.digests:
            raise KeyError(f"{listener} is none of {sorted(self.digests)}")
        return (each for each in self.chains if each.listener == listener and each.filters)


@dataclass(frozen=True, slots=True)
class Rendering:
    """istiod's result for the documents. `warnings`: `KIND NAME: …`, as a client of the API server gets them."""

    proxies: Mapping[str, Rendered]
    warnings: tuple[str, ...]


async def rendered(
    documents: Sequence[Mapping[str, Any]],
    proxies: Sequence[Proxy],
    *,
    flags: Mapping[str, str] | None = None,
) -> Mapping[str, Rendered]:
    """The configuration that istiod with these feature `flags` (`PILOT_…`) sends to each proxy, by the proxy's name. Raises RuntimeError."""
    found = await rendering(documents, proxies, flags=flags)
    return found.proxies


async def rendering(
    documents: Sequence[Mapping[str, Any]],
    proxies: Sequence[Proxy],
    *,
    flags: Mapping[str, str] | None = None,
) -> Rendering:
    """Like `rendered`, with the warnings of istiod's webhook."""
    program = await asyncio.to_thread(provision.istio_listeners)
    given = {
        "configs": yaml.safe_dump_all(documents),
        "proxies": [
            {
                "name": one.name,
                "type": one.type,
                "namespace": one.namespace,
                "address": one.address,
                "labels": dict(one.labels),
                "metadata": dict(one.metadata),
            }
            for one in proxies
        ],
    }
    process = await asyncio.create_subprocess_exec(
        program,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **goruntime.BRIEF, **(flags or {})},
    )
    try:
        async with asyncio.timeout(_SECONDS):
            out, said = await process.communicate(json.dumps(given).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"istio-listeners: {said.decode(errors='replace')[-4000:]}")
    answer = json.loads(out)
    return Rendering(
        proxies={name: _rendered(found) for name, found in answer["proxies"].items()},
        warnings=tuple(answer["warnings"]),
    )


def _rendered(found: Mapping[str, Any]) -> Rendered:
    return Rendered(
        chains=tuple(
            Chain(
                listener["name"],
                chain["name"],
                chain["match"].get("destinationPort"),
                tuple(chain["httpFilters"]) if "httpFilters" in chain else None,
            )
            for listener in found["listeners"]
            for chain in listener["chains"]
        ),
        digests={one["name"]: one["sha256"] for one in found["listeners"]},
        clusters=tuple(found["clusters"]),
    )


def _shown(filter_: Mapping[str, Any]) -> str:
    config = (filter_.get("typedConfig") or {}).get("value") or {}
    plugin = config.get("config") if isinstance(config, Mapping) else None
    return f"{filter_['name']}/{plugin['name']}" if isinstance(plugin, Mapping) else filter_["name"]
