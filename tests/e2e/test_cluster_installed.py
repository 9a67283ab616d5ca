"""`wasmer controller` as install.yaml runs it: its arguments, user, volumes and probes, in a cluster that rotates its credentials."""

import asyncio
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
import yaml

from tests.manifests import charts
from tests.parts import clients, istio, pod, ports, registry, wat, wire
from tests.parts.audit import Entry
from tests.parts.certificates import Authority
from tests.parts.faults.proxy import FaultProxy
from tests.parts.faults.virtualtime import VirtualTime
from tests.parts.installation import (
    MANIFESTS,
    PASSWORD,
    USER,
    Document,
    Installation,
    envoyfilters,
    install_crd,
    install_documents,
)
from tests.parts.kubernetes import Cluster, kubernetes
from tests.parts.pod import Container, Probed, ServiceAccountVolume
from tests.parts.registry import RegistryServer, TlsFiles
from tests.parts.wasmer import Wasmer, program

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800)]

CREDENTIALS_SECONDS = 61.0
"""The maximum number of seconds until credentials are read again."""
SERVICE_SECONDS = 31.0
"""The same for the Service that sidecars fetch from."""
# A test may replace the API server's certificate for this name; for other names it is the control plane's own.
SNI_HOST = "localhost"
_KINDS = frozenset(
    {
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "Service",
        "Deployment",
    }
)


@dataclass(frozen=True)
class InstalledCluster:
    """Shared by the tests: a cluster with everything of install.yaml except the running Deployment."""

    directory: Path
    cluster: Cluster
    kubectl: clients.Client
    registry: RegistryServer
    authority: Authority
    """The issuer of the certificate that the API server has for SNI_HOST."""
    tls: TlsFiles


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installed_cluster(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[InstalledCluster]:
    directory = tmp_path_factory.mktemp("installed")
    authority = Authority("first")
    tls = await asyncio.to_thread(authority.issue, directory / "sni", name="sni")
    async with (
        kubernetes(
            directory / "kubernetes",
            audit_level="RequestResponse",
            extra=[f"--tls-sni-cert-key={tls.certificate},{tls.key}:{SNI_HOST}"],
        ) as cluster,
        registry.distribution(directory / "registry", users={USER: PASSWORD}) as store,
    ):
        kubectl = await clients.kubectl(directory / "home", kubeconfig=cluster.kubeconfig)
        await istio.apply_crds(cluster)
        await cluster.create_namespace(istio.ROOT_NAMESPACE)
        await install_crd(kubectl)
        yield InstalledCluster(directory, cluster, kubectl, store, authority, tls)


@dataclass
class Installed(Installation):
    """The Deployment's container, running."""

    container: Container
    account: ServiceAccountVolume
    probes: Probed
    proxy: FaultProxy
    """The proxy between it and the API server."""
    namespace: str
    time: VirtualTime | None = None

    async def pass_(self, seconds: float) -> None:
        """Let this much time pass for the container, which must have been started with a clock."""
        assert self.time is not None
        await self.time.pass_(seconds, [self.wasmer])

    async def make_synced(self, name: str) -> None:
        """Create an AutoWasm and wait until it is Synced with its own EnvoyFilter."""
        image = await self.push(name, wat.header_filter(f"{self.namespace}-{name}"))
        await self.apply(self.autowasm(image, name=name, namespace=self.namespace))
        await self.wait_phase("Synced", name=name, namespace=self.namespace, timeout=90)
        await self.envoyfilter(name, namespace=self.namespace)

    @property
    def home(self) -> str:
        """The namespace that it was installed into."""
        namespace: str = self.container.deployment["metadata"]["namespace"]
        return namespace

    async def readyz(self) -> str:
        """The body of `/readyz`."""
        return (await wire.request("GET", f"http://{self.wasmer.admin}/readyz")).body.decode()

    async def token(self, *, bound_to: str) -> bytes:
        """Create this Secret, and a token of the shipped ServiceAccount that is valid until the Secret is deleted."""
        path = f"/api/v1/namespaces/{self.home}"
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": bound_to}}
        made = await self.cluster.request("POST", f"{path}/secrets", body=secret)
        bound = {"apiVersion": "v1", "kind": "Secret", "name": bound_to}
        answer = await self.cluster.request(
            "POST",
            f"{path}/serviceaccounts/{self.container.template['serviceAccountName']}/token",
            body={
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"boundObjectRef": {**bound, "uid": made["metadata"]["uid"]}},
            },
        )
        token: str = answer["status"]["token"]
        return token.encode()

    async def delete_secret(self, name: str) -> None:
        """Delete the Secret, which invalidates its token."""
        path = f"/api/v1/namespaces/{self.home}/secrets/{name}"
        await self.cluster.request("DELETE", path)

    async def invalidate(self, token: bytes, *, bound_to: str) -> None:
        """Returns once the API server refuses the token; it caches valid ones for ten seconds."""
        await self.delete_secret(bound_to)

        async def refused() -> bool:
            answer = await wire.request(
                "GET",
                f"{self.cluster.url}/api",
                headers={"authorization": f"Bearer {token.decode()}"},
                tls=self.cluster.context,
            )
            return answer.status == 401

        await _until(refused)

    async def log(self) -> list[dict[str, object]]:
        """Its log lines that are JSON."""
        text = await asyncio.to_thread(self.wasmer.process.log.read_text)
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    async def unauthorized(self) -> bool:
        """Whether it logged that the API server refused its token."""
        return any(": 401 " in str(line.get("error")) for line in await self.log())

    async def stored(self, name: str) -> list[Entry]:
        """Its accepted writes of the AutoWasm's status and of the EnvoyFilter."""
        kinds = {"autowasms/status", "envoyfilters"}
        return [
            entry
            for entry in await self.writes()
            if entry.resource in kinds
            and (entry.namespace, entry.name) == (self.namespace, name)
            and entry.code < 300
        ]


async def _until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.1)


_numbers = itertools.count()


@asynccontextmanager
async def running(
    installed_cluster: InstalledCluster,
    *,
    api: str = ports.LOOPBACK,
    authority: bytes | None = None,
    rendered: Sequence[Document] | None = None,
    time: VirtualTime | None = None,
) -> AsyncIterator[Installed]:
    """Run the container against the API server at the name or address `api`, with a certificate signed by `authority`.

    `rendered`: the installed documents, by default install.yaml. Pods of the Deployment do not run. The container is
    killed at the end: a graceful stop waits until sidecars have learned of it. `time` is its clock.
    """
    number = next(_numbers)
    directory = installed_cluster.directory / f"pod-{number}"
    installed = [*(rendered or install_documents(*_KINDS))]
    (deployment,) = [one for one in installed if one["kind"] == "Deployment"]
    others = [one for one in installed if one["kind"] in _KINDS - {"Deployment"}]
    text = yaml.safe_dump_all(others)
    await installed_cluster.kubectl.run("apply", "-f", "-", stdin=text.encode())
    home = deployment["metadata"]["namespace"]
    container = Container(deployment, f"wasmer-{number}", ports.LOOPBACK)
    account = ServiceAccountVolume(directory / "serviceaccount")
    # The manifest's port numbers are a Pod's own; here all tests share one network.
    host, admin = (f"{ports.LOOPBACK}:{port}" for port in ports.free_ports(2))
    server = urlsplit(installed_cluster.cluster.url)
    assert server.hostname is not None
    assert server.port is not None
    async with FaultProxy(server.hostname, server.port) as proxy:
        process = await asyncio.to_thread(
            container.process,
            program("wasmer"),
            directory,
            account=account,
            arguments=[
                f"--listen={host}",
                f"--admin-listen={admin}",
                # The registry is on loopback, without TLS.
                "--allow-cidr=127.0.0.0/8",
                f"--plain-http-registry={installed_cluster.registry.host}",
            ],
            # The kubelet's variables, and those of the image that affect Python. No HOME, as in the image.
            environment={
                "KUBERNETES_SERVICE_HOST": api,
                "KUBERNETES_SERVICE_PORT": str(proxy.port),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONUNBUFFERED": "1",
                **(time.variables if time is not None else {}),
            },
        )
        wasmer = Wasmer(process, directory, host, admin)
        installation = Installation(
            installed_cluster.directory,
            installed_cluster.cluster,
            installed_cluster.kubectl,
            installed_cluster.registry,
            wasmer,
        )
        namespace = await installation.add_namespace(f"team-{number}")
        parts = {field.name: getattr(installation, field.name) for field in fields(Installation)}
        named = {"http-wasm": host, "http-admin": admin}
        assert {port["name"] for port in container.spec["ports"]} == set(named)
        async with pod.probed(container, named) as probes:
            it = Installed(
                **parts,
                container=container,
                account=account,
                probes=probes,
                proxy=proxy,
                namespace=namespace,
                time=time,
            )
            own = await asyncio.to_thread(_read, installed_cluster.cluster.tls.authority)
            account.write(
                token=await it.token(bound_to=f"first-{number}"),
                ca_crt=authority or own,
                namespace=home.encode(),
            )
            async with process:
                await wasmer.start(timeout=60)
                try:
                    yield it
                finally:
                    await process.kill()
                    # The Lease was not released, and the next container would wait until it expires.
                    await installed_cluster.cluster.client.delete(lease_of(home))


def lease_of(namespace: str) -> str:
    """The path of wasmer's Lease."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/wasmer"


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _confinement(process_id: int) -> dict[str, str]:
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


async def test_the_shipped_deployment_runs_as_it_is_written(
    installed_cluster: InstalledCluster,
) -> None:
    async with running(installed_cluster) as it:
        process = it.wasmer.process
        await it.make_synced("test")

        said = await asyncio.to_thread(_confinement, process.pid)
        assert (int(said["CapEff"], 16), int(said["CapBnd"], 16), said["NoNewPrivs"]) == (0, 0, "1")
        cache = it.wasmer.directory / "cache"
        assert await asyncio.to_thread(lambda: any(cache.rglob("*"))), "the volume is in use"
        # Its children run modules with the same confinement, from code on the volume.
        status = (await it.get("test", namespace=it.namespace))["status"]
        (starts,) = [one for one in status["conditions"] if one["type"] == "Starts"]
        assert (starts["status"], starts["reason"]) == ("True", "Started")
        assert await asyncio.to_thread(lambda: any((cache / "compiled").glob("*.cwasm")))

        async def ready() -> bool:
            return it.probes.ready

        await _until(ready)
        assert it.probes.started is not None
        assert it.probes.killed == ""
        grace = it.container.template["terminationGracePeriodSeconds"]
        await process.stop(timeout=grace)
        assert process.returncode == 0, await process.tail()
        requests = await it.requests()
        assert all(entry.code != 403 for entry in requests)
        looked = {
            (one.resource, one.verb, one.name) for one in requests if one.namespace == it.home
        }
        assert looked >= {("services", "get", "wasmer"), ("endpoints", "get", "wasmer")}


async def test_the_container_can_write_nowhere_but_to_its_cache(
    installed_cluster: InstalledCluster,
) -> None:
    """The guarantees of `_pod.py`, on which the previous test depends."""
    (deployment,) = install_documents("Deployment")
    directory = installed_cluster.directory / "confined"
    account = ServiceAccountVolume(directory / "serviceaccount")
    account.write(token=b"secret")
    container = Container(deployment, "wasmer", ports.LOOPBACK)
    volumes = await asyncio.to_thread(container.volumes, directory, account)
    places = [volume["target"] for volume in volumes]
    places += ["/", "/tmp", "/var/tmp", str(installed_cluster.directory)]
    tried = "".join(f"touch {place}/written 2>/dev/null && echo {place}\n" for place in places)
    user, group = container.user
    script = f"id -u; id -g; cat {pod.SERVICE_ACCOUNT}/token; echo\n{tried}true"
    said = await pod.run_confined(
        ["/bin/sh", "-c", script], directory, user=user, group=group, volumes=volumes
    )
    assert said.split() == [str(user), str(group), "secret", "/var/cache/wasmer"]


@pytest.fixture
def clock(tmp_path: Path) -> VirtualTime:
    """The clock of a container."""
    return VirtualTime(tmp_path / "time")


async def test_a_rotated_token_is_taken_up_without_a_restart(
    installed_cluster: InstalledCluster, clock: VirtualTime
) -> None:
    async with running(installed_cluster, time=clock) as it:
        number = it.namespace.rpartition("-")[2]
        first = await asyncio.to_thread(_read, it.account.directory / "token")
        await it.make_synced("before")
        process_id = it.wasmer.process.pid

        # Like the kubelet: the new token is in place long before the old one expires.
        it.account.write(token=await it.token(bound_to=f"second-{number}"))
        await it.pass_(CREDENTIALS_SECONDS)
        await it.invalidate(first, bound_to=f"first-{number}")
        await it.make_synced("after")
        assert not await it.unauthorized(), "it was read in time"

        # And the failing case: the mounted token has expired. The API server never accepted it, so it is not cached.
        ended = await it.token(bound_to=f"ended-{number}")
        await it.delete_secret(f"ended-{number}")
        it.account.write(token=ended)
        await it.pass_(CREDENTIALS_SECONDS)
        waiting = asyncio.create_task(it.make_synced("late"))

        await _until(it.unauthorized)
        it.account.write(token=await it.token(bound_to=f"third-{number}"))
        await it.pass_(CREDENTIALS_SECONDS)
        await waiting

        assert it.wasmer.process.pid == process_id
        assert it.probes.killed == ""
        for name in ("before", "after", "late"):
            stored = await it.stored(name)
            created = [entry.verb for entry in stored if entry.resource == "envoyfilters"]
            assert created == ["create"], stored
            assert not any(entry.changed_nothing for entry in stored), stored


async def test_a_rotated_authority_is_taken_up_without_a_restart(
    installed_cluster: InstalledCluster, clock: VirtualTime
) -> None:
    authority = installed_cluster.authority.certificate_pem
    async with running(installed_cluster, api=SNI_HOST, authority=authority, time=clock) as it:
        await it.make_synced("before")
        process_id = it.wasmer.process.pid

        second = Authority("second")
        await _replace_certificate(installed_cluster, second)
        it.proxy.cut_all()  # existing connections outlive any rotation

        async def distrusted() -> bool:
            return any("certificate verify failed" in str(line).lower() for line in await it.log())

        await _until(distrusted)
        it.account.write(ca_crt=second.certificate_pem)
        await it.pass_(CREDENTIALS_SECONDS)
        await it.make_synced("after")

        assert it.wasmer.process.pid == process_id
        assert it.probes.killed == ""
        assert len([entry for entry in await it.stored("before") if entry.verb == "create"]) == 1


async def _replace_certificate(installed_cluster: InstalledCluster, authority: Authority) -> None:
    """Returns once the API server presents a certificate of `authority` for SNI_HOST."""
    files = await asyncio.to_thread(
        authority.issue, installed_cluster.directory / "next", name="sni"
    )
    await asyncio.to_thread(files.key.replace, installed_cluster.tls.key)
    await asyncio.to_thread(files.certificate.replace, installed_cluster.tls.certificate)
    context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as in `kubernetes`
    server = urlsplit(installed_cluster.cluster.url)

    async def shown() -> bool:
        try:
            _, writer = await asyncio.open_connection(
                server.hostname, server.port, ssl=context, server_hostname=SNI_HOST
            )
        except ssl.SSLError:
            return False
        writer.close()
        return True

    await _until(shown, seconds=120)


def _fetched_from(envoyfilter: Document) -> tuple[str, str]:
    """Envoy's cluster, and host and port, in the fetch of the first patch."""
    value = envoyfilter["spec"]["configPatches"][0]["patch"]["value"]
    uri = value["typedConfig"]["value"]["config"]["vmConfig"]["code"]["remote"]["httpUri"]
    return uri["cluster"], uri["uri"].partition("/")[0]


async def _kustomized(installed_cluster: InstalledCluster, **change: str) -> list[Document]:
    """install.yaml as `kubectl kustomize` changes it, for example with `namespace` or `namePrefix`."""
    folder = installed_cluster.directory / f"kustomize-{next(_numbers)}"
    await asyncio.to_thread(folder.mkdir)
    text = await asyncio.to_thread((MANIFESTS / "install.yaml").read_text)
    kustomization = {"resources": ["install.yaml"], **change}
    await asyncio.to_thread((folder / "install.yaml").write_text, text)
    target = folder / "kustomization.yaml"
    await asyncio.to_thread(target.write_text, yaml.safe_dump(kustomization))
    said = await installed_cluster.kubectl.run("kustomize", folder)
    return [document for document in yaml.safe_load_all(said.stdout) if document]


def _with_service(service: Document) -> str:
    """The service from which sidecars must fetch: istiod derives the cluster from name, namespace and port."""
    metadata, port = service["metadata"], service["spec"]["ports"][0]["port"]
    return f"outbound|{port}||{metadata['name']}.{metadata['namespace']}.svc.cluster.local"


async def test_in_another_namespace_it_publishes_the_service_that_is_there(
    installed_cluster: InstalledCluster,
) -> None:
    """kustomize's `namespace` changes no argument of the container."""
    await installed_cluster.cluster.create_namespace("mesh-blue")
    async with running(
        installed_cluster, rendered=await _kustomized(installed_cluster, namespace="mesh-blue")
    ) as it:
        await it.make_synced("test")
        cluster, authority = _fetched_from(await it.envoyfilter("test", namespace=it.namespace))
        service = await installed_cluster.cluster.request(
            "GET", "/api/v1/namespaces/mesh-blue/services/wasmer"
        )
        assert cluster == _with_service(service)
        assert authority == "wasmer.mesh-blue:8081"
        assert "service: warning" not in await it.readyz()
        lease = await installed_cluster.cluster.request("GET", lease_of("mesh-blue"))
        assert lease["spec"]["holderIdentity"]


async def test_a_chart_of_another_name_publishes_the_service_that_is_there(
    installed_cluster: InstalledCluster,
) -> None:
    await installed_cluster.cluster.create_namespace("mesh-green")
    objects = await asyncio.to_thread(charts.render, name="green", namespace="mesh-green")
    async with running(installed_cluster, rendered=[*objects.values()]) as it:
        await it.make_synced("test")
        cluster, _ = _fetched_from(await it.envoyfilter("test", namespace=it.namespace))
        service = await installed_cluster.cluster.request(
            "GET", "/api/v1/namespaces/mesh-green/services/green"
        )
        assert cluster == _with_service(service)
        assert "service: warning" not in await it.readyz()


async def test_nothing_is_published_that_no_sidecar_could_fetch(
    installed_cluster: InstalledCluster, clock: VirtualTime
) -> None:
    """kustomize's `namePrefix` renames the Service, and wasmer's arguments still name the old one."""
    await installed_cluster.cluster.create_namespace("mesh-red")
    rendered = await _kustomized(installed_cluster, namespace="mesh-red", namePrefix="red-")
    (deployment,) = [one for one in rendered if one["kind"] == "Deployment"]
    assert deployment["metadata"]["name"] == "red-wasmer"
    services = "/api/v1/namespaces/mesh-red/services"
    async with running(installed_cluster, rendered=rendered, time=clock) as it:
        image = await it.push("held", wat.header_filter("held"))
        await it.apply(it.autowasm(image, name="new", namespace=it.namespace))
        found = await it.wait_phase("Failed", name="new", namespace=it.namespace)
        reasons = {one["type"]: one["reason"] for one in found["status"]["conditions"]}
        assert reasons["Published"] == reasons["Ready"] == "ServiceNotFound"
        assert "Service mesh-red/wasmer does not exist" in found["status"]["message"]
        path = envoyfilters(it.namespace)
        assert (await installed_cluster.cluster.request("GET", path))["items"] == []
        said = await it.readyz()
        assert said.startswith("ready\n")
        assert "service: warning (Service mesh-red/wasmer does not exist)" in said
        assert any(line.get("reason") == "ServiceNotFound" for line in await it.log())

        # The operator creates it: waiting modules are published.
        good = await installed_cluster.cluster.request("GET", f"{services}/red-wasmer")
        service: Document = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "wasmer", "namespace": "mesh-red"},
            "spec": {"selector": good["spec"]["selector"], "ports": good["spec"]["ports"]},
        }
        await installed_cluster.cluster.request("POST", services, body=service)
        await it.pass_(SERVICE_SECONDS)
        await it.wait_phase("Synced", name="new", namespace=it.namespace)
        live = await it.envoyfilter("new", namespace=it.namespace)
        assert _fetched_from(live)[0] == _with_service(service)

        # The Service loses its port: the published EnvoyFilter stays, and the status reports the problem; another module is not published.
        service["spec"]["ports"][0]["port"] = 80
        await installed_cluster.cluster.request("PUT", f"{services}/wasmer", body=service)
        other = await it.push("other", wat.header_filter("other"))
        await it.apply(it.autowasm(other, name="late", namespace=it.namespace))
        await it.pass_(SERVICE_SECONDS)
        found = await it.wait_phase("Degraded", name="new", namespace=it.namespace)
        assert "Service mesh-red/wasmer has no TCP port 8081" in found["status"]["message"]
        assert (await it.envoyfilter("new", namespace=it.namespace)) == live
