"""Sources at private addresses, on a real API server: refused before the connection unless the operator named the host.

127.0.0.0/8 represents private addresses: some ports listen, others do not.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.clusterfixtures import PrivateInstallation
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.parts import ports, wasmer, wat
from tests.parts.certificates import Authority
from tests.parts.controlplane import ControlPlane
from tests.parts.installation import Document, Installation
from tests.parts.registry import RegistryServer, distribution

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

HOSTS = ("127.0.0.1", "127.0.0.2", "localhost")


@dataclass
class Listener:
    """A port that listens, and counts connections."""

    port: int
    peers: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.peers.append(str(writer.get_extra_info("sockname")))
            writer.close()

        server = await asyncio.start_server(accept, ["127.0.0.1", "127.0.0.2"], self.port)
        async with server:
            yield


async def guide(exchange: Exchange) -> None:
    """A host that the operator has allowed; it redirects to the port in the path."""
    found = re.search(r"/(redirect|realm)/(\d+)", exchange.request.target)
    if found is None:
        await exchange.send(404)
        return
    url = f"http://127.0.0.1:{found[2]}/inside"
    if found[1] == "redirect":
        await exchange.send(302, headers={"Location": url})
    else:
        await exchange.send(401, headers={"WWW-Authenticate": f'Bearer realm="{url}"'})


@dataclass
class WasmerInside:
    installation: Installation
    namespace: str
    guide: str
    private: RegistryServer
    """A host with TLS by an authority that wasmer trusts for every host: no flag names this host."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wasmer_inside(
    control_plane: ControlPlane,
    private_installation: PrivateInstallation,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[WasmerInside]:
    directory = tmp_path_factory.mktemp("inside")
    files = await asyncio.to_thread(Authority().issue, directory / "tls")
    async with (
        ScriptedServer(guide) as leading,
        distribution(directory / "private", tls=files) as private,
        private_installation(
            directory,
            reach=("--allow-private-host", leading.host),
            arguments=(
                *("--plain-http-registry", leading.host),
                *("--registry-ca-file", str(files.authority)),
            ),
        ) as installation,
    ):
        namespace = await control_plane.add_namespace("inside")
        await installation.add_pull_secret(namespace)
        yield WasmerInside(installation, namespace, leading.host, private)


def sources(guide: str, port: int) -> dict[str, Document]:
    """Every way in which an AutoWasm's author can steer a connection to a port."""
    images = {f"image-{n}": f"{host}:{port}/a/b:v1" for n, host in enumerate(HOSTS)}
    images |= {"image-redirect": f"{guide}/redirect/{port}:v1"}
    images |= {"image-realm": f"{guide}/realm/{port}:v1"}
    urls = {f"object-{n}": f"http://{host}:{port}/m.wasm" for n, host in enumerate(HOSTS)}
    urls |= {"object-tls": f"https://127.0.0.1:{port}/m.wasm"}
    urls |= {"object-redirect": f"http://{guide}/redirect/{port}"}
    found: dict[str, Document] = {
        name: {"registry": {"image": image}} for name, image in images.items()
    }
    return found | {name: {"object": {"url": url}} for name, url in urls.items()}


async def told(wasmer_inside: WasmerInside, name: str, *, port: int) -> Any:
    """All that the author can read of the object: its status and its Events, without times and names that always differ."""
    installation, namespace = wasmer_inside.installation, wasmer_inside.namespace
    document = await installation.wait_phase("Failed", name=name, namespace=namespace)
    path = f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3D{name}"

    async def written() -> Document | None:
        events = await installation.cluster.request("GET", path)
        return events if events["items"] else None

    events = await installation.wait_until(written)  # the Event is written after the status
    mine = sorted((event["type"], event["reason"], event["message"]) for event in events["items"])
    text = json.dumps([document["status"], mine], sort_keys=True)
    text = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", text)
    return json.loads(text.replace(str(port), "PORT").replace(name, "NAME"))


async def test_no_status_tells_an_open_port_from_a_closed_one(wasmer_inside: WasmerInside) -> None:
    installation = wasmer_inside.installation
    listener, closed = Listener(ports.free_port()), ports.free_port()
    kinds = sources(wasmer_inside.guide, listener.port)
    documents = []
    for prefix, port in (("one", listener.port), ("two", closed)):
        for kind, source in sources(wasmer_inside.guide, port).items():
            document = installation.autowasm(
                "unused", name=f"{prefix}-{kind}", namespace=wasmer_inside.namespace
            )
            document["spec"]["filter"]["source"] = source
            del document["spec"]["secret"]
            documents.append(document)
    async with listener.listening():
        await installation.apply(*documents)
        for kind in kinds:
            of_open = await told(wasmer_inside, f"one-{kind}", port=listener.port)
            of_closed = await told(wasmer_inside, f"two-{kind}", port=closed)
            assert of_open == of_closed, kind
            status = of_open[0]
            ready = next(one for one in status["conditions"] if one["type"] == "Ready")
            assert ready["reason"] == "AddressNotAllowed", (kind, ready)
            assert "--allow-private-host" in status["message"]
    assert listener.peers == []


async def warning(log: Path, *, after: int) -> Document | None:
    """The line that an operator finds in the log of the new version."""
    text = (await asyncio.to_thread(log.read_bytes))[after:].decode()
    said = "another fetch of published modules would be denied"
    return next(({"line": line} for line in text.splitlines() if said in line), None)


async def test_an_upgrade_keeps_the_filter_and_says_which_flag_is_missing(
    wasmer_inside: WasmerInside,
) -> None:
    """As after an upgrade from a version that fetched from private addresses by default."""
    installation, server = wasmer_inside.installation, wasmer_inside.installation.wasmer
    namespace = wasmer_inside.namespace
    now = list(server.process.command)

    async def published() -> Any:
        return (await installation.envoyfilter("upgraded", namespace=namespace))["spec"]

    async def push(tag: str) -> str:
        file = installation.directory / f"{tag}.wasm"
        await asyncio.to_thread(file.write_bytes, wat.header_filter(tag))
        image = f"{wasmer_inside.private.host}/inside/filter:{tag}"
        trust = ("--ca-file", str(installation.directory / "tls/server-ca.pem"))
        await wasmer.wasmc(installation.directory).run("push", image, "-f", str(file), *trust)
        return image

    async def restart(*more: str) -> None:
        await server.process.stop()
        server.process.command = [*now, *more]
        await server.start()

    document = installation.autowasm(await push("v1"), name="upgraded", namespace=namespace)
    del document["spec"]["secret"]
    await restart(*wasmer.LOOPBACK_SOURCES)
    await installation.apply(document)
    await installation.wait_phase("Synced", name="upgraded", namespace=namespace)
    before = await published()

    size = (await asyncio.to_thread(server.process.log.stat)).st_size
    await restart()
    await installation.wait_phase("Synced", name="upgraded", namespace=namespace)
    warned = await installation.wait_until(lambda: warning(server.process.log, after=size))
    assert f"--allow-private-host {wasmer_inside.private.host} " in warned["line"]
    document["spec"]["filter"]["source"]["registry"]["image"] = await push("v2")
    await installation.apply(document)
    found = await installation.wait_phase("Degraded", name="upgraded", namespace=namespace)
    status = found["status"]
    assert await published() == before
    missing = re.search(r"--allow-private-host \S+", status["message"])
    assert missing is not None, status["message"]
    assert missing[0] == f"--allow-private-host {wasmer_inside.private.host}"
    assert "config.allowPrivateHost" in status["message"]

    await restart(*missing[0].split())
    await installation.wait_phase("Synced", name="upgraded", namespace=namespace)
    assert await published() != before


async def test_a_registry_that_a_flag_names_is_fetched_from(wasmer_inside: WasmerInside) -> None:
    """The installation's own registry: a flag names it as one without TLS, and it has a loopback address."""
    installation = wasmer_inside.installation
    image = await installation.push("v1", wat.header_filter("v1"), repository="inside/named")
    await installation.apply(
        installation.autowasm(image, name="named", namespace=wasmer_inside.namespace)
    )
    await installation.wait_phase("Synced", name="named", namespace=wasmer_inside.namespace)
    as_object = installation.autowasm(
        "unused", name="named-as-object", namespace=wasmer_inside.namespace
    )
    url = f"http://{installation.registry.host}/v2/inside/named/blobs/sha256:0"
    as_object["spec"]["filter"]["source"] = {"object": {"url": url}}
    await installation.apply(as_object)
    status = (
        await installation.wait_phase(
            "Failed", name="named-as-object", namespace=wasmer_inside.namespace
        )
    )["status"]
    assert "--allow-private-host" in status["message"]


async def test_the_port_of_a_listener_listens() -> None:
    """The counterpart of the first test: each connection is counted."""
    listener = Listener(ports.free_port())
    async with listener.listening():
        reader, writer = await asyncio.open_connection("127.0.0.2", listener.port)
        await reader.read()
        writer.close()
    assert len(listener.peers) == 1
