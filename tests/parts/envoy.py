"""The real Envoy, with its listeners from a file (filesystem LDS) and everything else fixed.

Not a model of a sidecar: plain HTTP, no control plane. Envoy chooses its admin port itself; the LDS document has the
listeners' ports.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tests.parts import ports, provision, pypi, wire
from tests.parts.process import Process

_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Envoy's server info. `state` is `LIVE`, `INITIALIZING`, `PRE_INITIALIZING` or `DRAINING`."""

    version: str
    state: str
    uptime_seconds: int
    epoch: int


class Envoy:
    """A running Envoy."""

    def __init__(self, process: Process, *, admin: str) -> None:
        self.process = process
        self.admin = admin

    @property
    def log(self) -> Path:
        """The file to which Envoy appends its log."""
        return self.process.log

    async def log_text(self) -> str:
        """Envoy's log until now."""
        return await asyncio.to_thread(self.log.read_text, errors="replace")

    async def ready(self) -> bool:
        """Whether Envoy has started: the listeners are open, and each module is fetched or has failed."""
        return (await wire.get(f"http://{self.admin}/ready")).status == 200

    async def stats(self, prefix: str = "") -> dict[str, int]:
        """Counters and gauges with names that begin with `prefix`, without histograms and text readouts."""
        answer = await wire.get(f"http://{self.admin}/stats?format=json")
        entries = json.loads(answer.body)["stats"]
        return {
            entry["name"]: entry["value"]
            for entry in entries
            if entry.get("name", "").startswith(prefix) and isinstance(entry["value"], int)
        }

    async def server_info(self) -> ServerInfo:
        """Version, state, uptime; `epoch` counts hot restarts and is 0 without one."""
        answer = await wire.get(f"http://{self.admin}/server_info")
        said = json.loads(answer.body)
        return ServerInfo(
            version=said["version"].split("/")[1],
            state=said["state"],
            uptime_seconds=int(said["uptime_current_epoch"].removesuffix("s")),
            epoch=int(said["command_line_options"]["restart_epoch"]),
        )

    async def config_dump(self) -> dict[str, Any]:
        """All configuration as Envoy has it, as its admin port shows it."""
        dump: dict[str, Any] = json.loads((await wire.get(f"http://{self.admin}/config_dump")).body)
        return dump


@asynccontextmanager
async def envoy(
    directory: Path,
    *,
    lds: Path,
    clusters: Mapping[str, str],
    version: str = pypi.ENVOY_VERSIONS[0],
    concurrency: int = 2,
    drain_seconds: int = 2,
    log_level: str = "info,wasm:debug",
    wait_for: Literal["ready", "admin"] = "ready",
    timeout: float = 30,
    watched_directory: Path | None = None,
) -> AsyncIterator[Envoy]:
    """Run Envoy with its bootstrap and `envoy.log` in `directory`, following the listeners in the file `lds`.

    `lds` must exist; replace it by rename. `watched_directory` makes Envoy read it whenever a file is moved into that folder (for the
    swapped symlinks of a ConfigMap), instead of when the file itself is replaced. `clusters` are the static clusters: name to
    `address:port`. `log_level` is the level, then `component:level` pairs. With `wait_for="admin"` Envoy may still be starting, as it
    is while a module is being fetched. Raises ProcessError if it is not ready within `timeout` s.
    """
    program = await asyncio.to_thread(provision.envoy, version)
    bootstrap = directory / "envoy.yaml"
    address_file = directory / "admin-address"
    text = bootstrap_yaml(lds=lds, clusters=clusters, watched_directory=watched_directory)

    def prepare() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        address_file.unlink(missing_ok=True)
        bootstrap.write_text(text)

    await asyncio.to_thread(prepare)
    level, *components = log_level.split(",")
    command: list[str | Path] = [program, "-c", bootstrap, "--admin-address-path", address_file]
    command += ["--concurrency", str(concurrency), "--drain-time-s", str(drain_seconds)]
    command += ["--log-level", level, "--disable-hot-restart"]
    if components:
        command += ["--component-log-level", ",".join(components)]
    process = Process(f"envoy {version}", command, log=directory / "envoy.log", cwd=directory)
    proxy = Envoy(process, admin="")

    async def up() -> bool:
        if not proxy.admin:
            proxy.admin = await asyncio.to_thread(_read_address, address_file)
        return bool(proxy.admin) and (await proxy.ready() or wait_for == "admin")

    async with process:
        await process.start(ready=up, timeout=timeout)
        yield proxy


def _read_address(path: Path) -> str:
    """The admin address; empty before Envoy has written it. Raises FileNotFoundError, an OSError, before that."""
    return path.read_text().strip()


def bootstrap_yaml(
    *, lds: Path, clusters: Mapping[str, str], watched_directory: Path | None = None
) -> str:
    """Envoy's bootstrap: the admin server on a port that Envoy chooses, listeners from `lds`, static `clusters`."""
    source: dict[str, Any] = {"path": str(lds)}
    if watched_directory:
        source["watched_directory"] = {"path": str(watched_directory)}
    document = {
        "node": {"id": "test-proxy", "cluster": "test"},
        "admin": {"address": _socket_address(f"{ports.LOOPBACK}:0")},
        "dynamic_resources": {
            "lds_config": {"resource_api_version": "V3", "path_config_source": source}
        },
        "static_resources": {"clusters": [_cluster(name, host) for name, host in clusters.items()]},
    }
    return yaml.safe_dump(document, sort_keys=False)


def listeners_yaml(listener_ports: Sequence[int], *, cluster: str) -> str:
    """An LDS document: for each port an HTTP listener on loopback that sends everything to `cluster`.

    Each has the name `inbound-PORT` and one HTTP filter, the router.
    """
    return yaml.safe_dump(
        {"resources": [_listener(port, cluster=cluster) for port in listener_ports]},
        sort_keys=False,
    )


def _listener(port: int, *, cluster: str) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster}}
    manager = {
        "@type": _HCM,
        "stat_prefix": f"inbound-{port}",
        "route_config": {
            "name": "inbound",
            "virtual_hosts": [{"name": "inbound", "domains": ["*"], "routes": [route]}],
        },
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}],
    }
    return {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": f"inbound-{port}",
        "address": _socket_address(f"{ports.LOOPBACK}:{port}"),
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }


def _cluster(name: str, host: str) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _socket_address(host)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }


def _socket_address(host: str) -> dict[str, Any]:
    address, _, port = host.rpartition(":")
    return {"socket_address": {"address": address.strip("[]"), "port_value": int(port)}}
