"""Whether the real Envoy loads a module: `envoy --mode validate`, which loads it from a local file, starts it, and ends."""

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.parts import provision

HTTP = "type.googleapis.com/envoy.extensions.filters"
_DEADLINE = 100.0
"""Seconds. A module from Go takes five on an idle machine."""


async def envoy_failure(
    version: str, module: bytes, directory: Path, *, plugin: Mapping[str, Any] | None = None
) -> str:
    """Envoy's error for the module; empty if the module loads, starts and accepts its configuration.

    `plugin` is the `PluginConfig` without the code; without it the configuration is empty. `exit status -11` when Envoy
    crashes: the number is the signal's. Writes to `directory`.
    """
    path, config = directory / "module.wasm", directory / "envoy.json"
    path.write_bytes(module)
    config.write_text(json.dumps(_bootstrap(path, plugin or {})))
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


def _bootstrap(module: Path, plugin: Mapping[str, Any]) -> dict[str, Any]:
    """One listener whose filter is the module in a local file."""
    code = {"local": {"filename": str(module)}}
    vm = {"runtime": "envoy.wasm.runtime.v8"} | plugin.get("vm_config", {}) | {"code": code}
    wasm = {**plugin, "vm_config": vm}
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
