"""Whether the real Envoy loads a module: `envoy --mode validate`, which loads it from a local file, starts it, and ends."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from tests.parts import provision

HTTP = "type.googleapis.com/envoy.extensions.filters"
_DEADLINE = 100.0
"""Seconds. A module from Go takes five on an idle machine."""


async def envoy_failure(version: str, module: bytes, directory: Path) -> str:
    """Envoy's error for the module; empty if it loads, starts and accepts an empty configuration.

    `exit status -11` when Envoy crashes: the number is the signal's. Writes to `directory`.
    """
    path, config = directory / "module.wasm", directory / "envoy.json"
    path.write_bytes(module)
    config.write_text(json.dumps(_bootstrap(path)))
    program = await asyncio.to_thread(provision.envoy, version)
    process = await asyncio.create_subprocess_exec(
        *(str(program), "--mode", "validate", "-c", str(config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_DEADLINE):
        _, log = await process.communicate()
    if process.returncode == 0:
        return ""
    errors = re.findall(r"\[error\]\[wasm\] \[[^]]*\] (.*)", log.decode(errors="replace"))
    return errors[0] if errors else f"exit status {process.returncode}"


def _bootstrap(module: Path) -> dict[str, Any]:
    """One listener with the module in a local file as its filter."""
    code = {"local": {"filename": str(module)}}
    wasm = {"vm_config": {"runtime": "envoy.wasm.runtime.v8", "code": code}}
    manager = {
        "@type": f"{HTTP}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "route_config": {},
        "http_filters": [
            {
                "name": "wasm",
                "typed_config": {"@type": f"{HTTP}.http.wasm.v3.Wasm", "config": wasm},
            },
            {
                "name": "router",
                "typed_config": {"@type": f"{HTTP}.http.router.v3.Router"},
            },
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    listener = {"name": "test", "address": address, "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener]}}
