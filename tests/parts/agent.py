"""A real istio-agent beside a sidecar: istiod signs the workload's certificate for it, and it serves that to Envoy.

`agent` runs one without Envoy: `istio.sidecar` starts Envoy, with another bootstrap, and Envoy connects to istiod directly.
`injected` runs one that starts Envoy with Istio's bootstrap, as in a Pod. Invariant: the agent authenticates to istiod with a token
of the workload's ServiceAccount, so the identity in the certificate is a real one.
"""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.parts import pod, ports, provision, pypi, releases
from tests.parts.envoy import Envoy
from tests.parts.istio import ROOT_NAMESPACE, SDS_SOCKET, Istiod
from tests.parts.process import Process

_ALPN = "istio-http/1.1"  # an inbound listener recognizes a sidecar's connection by it
_READY_SECONDS = 60
_DATA = "/var/lib/istio/data"
"""`IstioDataDir`, a constant of the agent: the folder in which it stores modules."""
_USER = 1337
"""User and group of the container istio-proxy."""
_INOTIFY = 1
"""Inotify instances of a confined agent. It would use a second one, for istiod's root certificate, but works without it: a Linux
user may have 128, too few for two per agent with 64 agents."""
STATISTICS_PORT = 15090
"""The port of Envoy's statistics on the workload's address, as in each sidecar."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A running agent. Pass its `directory` to `istio.sidecar`, unless the agent starts Envoy itself."""

    process: Process
    directory: Path

    def client(self) -> ssl.SSLContext:
        """The TLS context for outgoing connections of this workload's sidecar: its certificate, and istiod's authority. Blocks."""
        certificates = self.directory / "certificates"
        context = ssl.create_default_context(cafile=certificates / "root-cert.pem")
        context.check_hostname = False  # a mesh certificate names an identity (SPIFFE), not a host
        context.load_cert_chain(certificates / "cert-chain.pem", certificates / "key.pem")
        context.set_alpn_protocols([_ALPN])
        return context


@asynccontextmanager
async def agent(
    mesh: Istiod, directory: Path, *, name: str, address: str, account: str = "default"
) -> AsyncIterator[Agent]:
    """Run an agent for the workload `name` in `default` with this ServiceAccount; `mesh` must be a certificate authority.

    Returns once it has a certificate. Raises ProcessError.
    """
    # The agent does not run without an Envoy process.
    sleeper = directory / "envoy"
    process, _ = await _agent(
        mesh,
        directory,
        name=name,
        address=address,
        account=account,
        program=sleeper,
        files={"envoy": "#!/bin/sh\nexec sleep infinity\n"},
    )

    async def ready() -> bool:
        wanted = [directory / "certificates" / "cert-chain.pem", directory / SDS_SOCKET]
        return await asyncio.to_thread(lambda: all(path.exists() for path in wanted))

    async with process:
        await process.start(ready=ready, timeout=_READY_SECONDS)
        yield Agent(process, directory)


@asynccontextmanager
async def injected(
    mesh: Istiod,
    directory: Path,
    *,
    name: str,
    labels: Mapping[str, str],
    address: str,
    account: str = "default",
    version: str = pypi.ENVOY_VERSIONS[0],
    metadata: Mapping[str, str] | None = None,
    proxy_config: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    fetches_modules: bool = False,
    timeout: float = _READY_SECONDS,
) -> AsyncIterator[tuple[Agent, Envoy]]:
    """Run an agent that starts a plain Envoy with Istio's bootstrap and forwards configuration and certificates from istiod.

    The agent is for the workload `name` in `default` (add it first). `metadata`: `ISTIO_META_…` variables, without that prefix.
    `proxy_config`: more fields of the mesh's `ProxyConfig`. `environment`: more variables of the agent. With `fetches_modules`
    it is confined like a container, and can write to the folder where it stores the modules of WasmPlugins. Returns once Envoy
    is ready. Raises ProcessError.
    """
    envoy = await asyncio.to_thread(provision.envoy, version)
    process, admin = await _agent(
        mesh,
        directory,
        name=name,
        address=address,
        account=account,
        program=envoy,
        environment={
            "ISTIO_METAJSON_LABELS": json.dumps(dict(labels)),
            "ISTIO_META_INTERCEPTION_MODE": "NONE",
            # An extension of Istio's build of Envoy, which the agent enables by default if there is a tunnel.
            "PEER_METADATA_DISCOVERY": "false",
            "ISTIO_META_ISTIO_VERSION": mesh.release.version,
            **{f"ISTIO_META_{key}": value for key, value in (metadata or {}).items()},
            **(environment or {}),
        },
        proxy_config=proxy_config,
        is_container=fetches_modules,
    )
    proxy = Envoy(process, admin=admin)
    async with process:
        await process.start(ready=proxy.ready, timeout=timeout)
        yield Agent(process, directory), proxy


async def _agent(
    mesh: Istiod,
    directory: Path,
    *,
    name: str,
    address: str,
    account: str,
    program: Path,
    files: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    proxy_config: Mapping[str, Any] | None = None,
    is_container: bool = False,
) -> tuple[Process, str]:
    """An agent that is not started yet, and the address of its Envoy's admin port."""
    token = await mesh.cluster.request(
        "POST",
        f"/api/v1/namespaces/default/serviceaccounts/{account}/token",
        body={
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": ["istio-ca"]},
        },
    )
    roots = await mesh.cluster.wait_for("/api/v1/namespaces/default/configmaps/istio-ca-root-cert")
    agent_program = await asyncio.to_thread(provision.pilot_agent)
    bootstrap = await asyncio.to_thread(lambda: _bootstrap().read_text())
    status_port, admin_port, health_port = ports.free_ports(3)
    written = {
        "var/run/secrets/tokens/istio-token": token["status"]["token"],
        "var/run/secrets/istio/root-cert.pem": roots["data"]["root-cert.pem"],
        # Istio's own, except for the address: Istio's listens on all addresses of the machine.
        "bootstrap.json": bootstrap.replace("{{ .wildcard }}", address),
        **(files or {}),
    }
    await asyncio.to_thread(_write, directory, written)
    config = {
        "binaryPath": str(program),
        "configPath": "./etc/istio/proxy",
        "discoveryAddress": mesh.secure,
        "statusPort": status_port,
        "proxyAdminPort": admin_port,
        "concurrency": 2,
        # As an agent starts it, except for the drain time, which is 45 s there.
        "drainDuration": "2s",
        "terminationDrainDuration": "1s",
        **(proxy_config or {}),
    }
    command: list[str | Path] = [
        *(agent_program, "proxy", "sidecar", "--domain", "default.svc.cluster.local"),
        *("--stsPort", "0", "--proxyComponentLogLevel", "wasm:debug"),
    ]
    if is_container:
        command = await asyncio.to_thread(_in_container, command, directory)
    return Process(
        f"agent {name}",
        command,
        log=directory / "agent.log",
        env={
            **os.environ,
            "ISTIO_BOOTSTRAP": str(directory / "bootstrap.json"),
            "PROXY_CONFIG": json.dumps(config),
            "INSTANCE_IP": address,
            "POD_NAME": name,
            "POD_NAMESPACE": "default",
            "SERVICE_ACCOUNT": account,
            "TRUST_DOMAIN": "cluster.local",
            "PILOT_CERT_PROVIDER": "istiod",
            # Requests use its address here, not its name.
            "ISTIOD_SAN": f"istiod.{ROOT_NAMESPACE}.svc",
            "ISTIO_META_CLUSTER_ID": "Kubernetes",
            "OUTPUT_CERTS": "./certificates",
            "ENVOY_STATUS_PORT": str(health_port),
            # As in a Pod: the address is the workload's own.
            "ENVOY_PROMETHEUS_PORT": str(STATISTICS_PORT),
            **(environment or {}),
        },
        cwd=directory,
    ), f"{ports.LOOPBACK}:{admin_port}"


def _in_container(command: list[str | Path], directory: Path) -> list[str | Path]:
    modules = directory / "modules"
    modules.mkdir(exist_ok=True)
    volumes = [
        pod.volume(directory, str(directory), writable=True),
        pod.volume(modules, _DATA, writable=True),
    ]
    words = [str(word) for word in command]
    return pod.confined(
        words, directory, user=_USER, group=_USER, volumes=volumes, inotify=_INOTIFY
    )


def _bootstrap() -> Path:
    return provision.istio_files() / releases.ISTIO.bootstrap


def _write(directory: Path, files: dict[str, str]) -> None:
    for folder in (SDS_SOCKET.parent, Path("certificates"), Path("etc/istio/proxy")):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o700)
