"""Every kind of source gives the same filter: images from other tools, and objects over http."""

import asyncio
import gzip
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Standalone
from tests.fakes.objectserver import object_server
from tests.parts import clients, wat, wire
from tests.unit.wasm.archives import tar


async def test_objects_of_every_form_are_served_as_the_module_in_them(
    standalone: Standalone,
) -> None:
    module = wat.header_filter("world")
    bodies = {
        "/raw": module,
        "/module.gz": gzip.compress(module),
        "/module.tar": tar({"./dir/plugin.wasm": module}),
        "/module.tar.gz": gzip.compress(tar({"only.wasm": module})),
    }
    async with object_server(bodies) as url:
        for path in bodies:
            document = standalone.autowasm("unused", name="object" + path.replace("/", "-").lower())
            document["spec"]["filter"]["source"] = {"object": {"url": f"{url}{path}?sig=s3cret"}}
            standalone.wasmer.apply(document)
        digests = set()
        for path in bodies:
            name = "object" + path.replace("/", "-").lower()
            status = await standalone.wasmer.wait_phase(name, "Synced")
            digests.add(status["module"]["sha256"])

    assert len(digests) == 1
    await standalone.load.wait_for("world, world, world, world")  # four filters, one module
    log = await asyncio.to_thread(standalone.wasmer.process.log.read_text)
    assert "s3cret" not in log


@pytest.mark.parametrize("flavour", ["crane-image", "oras-one-layer", "oras-two-layers"])
async def test_images_of_foreign_clients_are_served(standalone: Standalone, flavour: str) -> None:
    module = wat.header_filter(flavour)
    (standalone.directory / "plugin.wasm").write_bytes(module)
    (standalone.directory / "layer.tar").write_bytes(tar({"plugin.wasm": module}))
    (standalone.directory / "config.json").write_text('{"type": "envoy_proxy"}')
    image = standalone.image(flavour)
    if flavour == "crane-image":
        crane = await clients.crane(standalone.directory)
        await crane.run("append", "-f", "layer.tar", "-t", image)
    else:
        oras = await clients.oras(standalone.directory)
        content = "plugin.wasm:application/vnd.module.wasm.content.layer.v1+wasm"
        layers = [content]
        if flavour == "oras-two-layers":
            layers.insert(0, "config.json:application/vnd.module.wasm.config.v1+json")
        await oras.run("push", "--plain-http", image, *layers)

    standalone.wasmer.apply(standalone.autowasm(image))

    await standalone.load.wait_for(flavour)


async def test_no_label_of_any_metric_is_written_by_a_tenant(standalone: Standalone) -> None:
    """Hosts, paths, digests and methods of specs and of clients of the blob port create no series."""
    module = wat.header_filter("world")
    standalone.wasmer.apply(standalone.autowasm(await standalone.push("tenanttag", module)))
    async with object_server({"/tenantpath": module}) as url:
        document = standalone.autowasm("unused", name="object")
        document["spec"]["filter"]["source"] = {"object": {"url": f"{url}/tenantpath"}}
        standalone.wasmer.apply(document)
        for name in ("test", "object"):
            await standalone.wasmer.wait_phase(name, "Synced")
    for method, path in (
        ("TENANT", "/wasm/x"),
        ("GET", "/tenantasks"),
        ("GET", f"/wasm/{'7' * 64}"),
    ):
        await wire.request(method, f"http://{standalone.wasmer.host}{path}")

    text = (await wire.request("GET", f"http://{standalone.wasmer.admin}/metrics")).body.decode()
    values = {
        (sample.name, label): value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for label, value in sample.labels.items()
        if re.search(r"tenant|7777|[0-9a-f]{12}|127\.0\.0\.1", value, re.IGNORECASE)
    }
    # The operator has named the registry: --plain-http-registry.
    assert values == {("autowasm_source_requests_total", "host"): standalone.registry.host}
    assert 'autowasm_source_requests_total{host="other"} 1.0' in text, "the object server"
