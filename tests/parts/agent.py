"""A real istio-agent beside a sidecar: it has istiod sign the workload's certificate, and serves that to the Envoy there.

Not the agent that starts Envoy: `istio.sidecar` does, with a bootstrap of its own, and follows istiod directly. Invariant:
what the agent shows istiod is a token of the workload's ServiceAccount, so the identity in the certificate is a real one.
"""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.parts import ports, provision
from tests.parts.istio import ROOT_NAMESPACE, SDS_SOCKET, Istiod
from tests.parts.process import Process

_ALPN = "istio-http/1.1"  # by which an inbound listener knows that a sidecar calls
_READY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Agent:
    """It runs in `directory`: give that to `istio.sidecar`."""

    process: Process
    directory: Path

    def client(self) -> ssl.SSLContext:
        """TLS as this workload's sidecar does it towards others: with its certificate, trusting istiod's. Blocks."""
        certificates = self.directory / "certificates"
        context = ssl.create_default_context(cafile=certificates / "root-cert.pem")
        context.check_hostname = False  # names are identities (SPIFFE) in a mesh, not hosts
        context.load_cert_chain(certificates / "cert-chain.pem", certificates / "key.pem")
        context.set_alpn_protocols([_ALPN])
        return context


@asynccontextmanager
async def agent(
    mesh: Istiod, directory: Path, *, name: str, address: str, account: str = "default"
) -> AsyncIterator[Agent]:
    """Run an agent for the workload `name` in `default` with this ServiceAccount; `mesh` is an authority.

    Returns once it has a certificate. Raises ProcessError.
    """
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
    program = await asyncio.to_thread(provision.pilot_agent)
    bootstrap = await asyncio.to_thread(_bootstrap)
    status_port, admin_port = ports.free_ports(2)
    files = {
        "var/run/secrets/tokens/istio-token": token["status"]["token"],
        "var/run/secrets/istio/root-cert.pem": roots["data"]["root-cert.pem"],
        # The agent does not run without an Envoy to look after.
        "envoy": "#!/bin/sh\nexec sleep infinity\n",
    }
    await asyncio.to_thread(_write, directory, files)
    config = {
        "binaryPath": str(directory / "envoy"),
        "configPath": "./etc/istio/proxy",
        "discoveryAddress": mesh.secure,
        "statusPort": status_port,
        "proxyAdminPort": admin_port,
    }
    environment = {
        **os.environ,
        "ISTIO_BOOTSTRAP": str(bootstrap),
        "PROXY_CONFIG": json.dumps(config),
        "INSTANCE_IP": address,
        "POD_NAME": name,
        "POD_NAMESPACE": "default",
        "SERVICE_ACCOUNT": account,
        "TRUST_DOMAIN": "cluster.local",
        "PILOT_CERT_PROVIDER": "istiod",
        # It is asked for by its address here, not by its name.
        "ISTIOD_SAN": f"istiod.{ROOT_NAMESPACE}.svc",
        "ISTIO_META_CLUSTER_ID": "Kubernetes",
        "OUTPUT_CERTS": "./certificates",
    }
    process = Process(
        f"agent {name}",
        [program, "proxy", "sidecar", "--domain", "default.svc.cluster.local", "--stsPort", "0"],
        log=directory / "agent.log",
        env=environment,
        cwd=directory,
    )

    async def ready() -> bool:
        wanted = [directory / "certificates" / "cert-chain.pem", directory / SDS_SOCKET]
        return await asyncio.to_thread(lambda: all(path.exists() for path in wanted))

    async with process:
        await process.start(ready=ready, timeout=_READY_SECONDS)
        yield Agent(process, directory)


def _bootstrap() -> Path:
    return provision.istio_source() / "tools/packaging/common/envoy_bootstrap.json"


def _write(directory: Path, files: dict[str, str]) -> None:
    for folder in (SDS_SOCKET.parent, Path("certificates"), Path("etc/istio/proxy")):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o700)
