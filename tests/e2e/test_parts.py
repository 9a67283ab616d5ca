"""The real parts start, work together and stop. If this fails, the results of other e2e tests mean nothing."""

import asyncio
import json
from pathlib import Path

import pytest
import wasmtime
import yaml

from tests.parts import clients, ports, pypi, registry, wat, wire
from tests.parts.certificates import Authority
from tests.parts.envoy import envoy, listeners_yaml
from tests.parts.load import Load
from tests.parts.upstream import upstream

_EMPTY_MODULE = "(module)"


@pytest.fixture
def listener(tmp_path: Path) -> tuple[Path, int]:
    """A file with one listener, and its port."""
    lds = tmp_path / "lds.yaml"
    port = ports.free_port()
    lds.write_text(listeners_yaml([port], cluster="service"))
    return lds, port


@pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)
async def test_a_request_goes_through_envoy(
    tmp_path: Path, listener: tuple[Path, int], version: str
) -> None:
    lds, port = listener
    async with (
        upstream() as service,
        envoy(tmp_path, lds=lds, clusters={"service": service.host}, version=version) as proxy,
    ):
        answer = await wire.get(f"http://{ports.LOOPBACK}:{port}/hello?x=1")
        assert answer.status == 200
        assert answer.headers["server"] == "envoy"
        assert json.loads(answer.body)["path"] == "/hello?x=1"
        info = await proxy.server_info()
        assert (info.version, info.state, info.epoch) == (version, "LIVE", 0)
        assert (await proxy.stats(f"http.inbound-{port}."))[
            f"http.inbound-{port}.downstream_rq_2xx"
        ] == 1
        assert "starting main dispatch loop" in await proxy.log_text()


async def test_envoy_follows_a_replaced_listener_file_and_the_load_notices_all(
    tmp_path: Path, listener: tuple[Path, int]
) -> None:
    lds, port = listener
    async with (
        upstream() as service,
        envoy(tmp_path, lds=lds, clusters={"service": service.host}) as proxy,
    ):
        load = Load(f"{ports.LOOPBACK}:{port}", header="x-mark")
        async with load.steady() as report:
            while min(report.by_worker["kept"], report.by_worker["fresh"]) < 10:
                await asyncio.sleep(0.01)
            marked = yaml.safe_load(listeners_yaml([port], cluster="service"))
            manager = marked["resources"][0]["filter_chains"][0]["filters"][0]["typed_config"]
            manager["route_config"]["response_headers_to_add"] = [
                {"header": {"key": "x-mark", "value": "set"}}
            ]
            staged = tmp_path / "staged.yaml"
            await asyncio.to_thread(staged.write_text, yaml.safe_dump(marked))
            await asyncio.to_thread(staged.replace, lds)
            await load.wait_for("set", timeout=10)
            before = report.failed
            while report.by_value["set"] < 20:
                await asyncio.sleep(0.01)
        assert report.by_value["set"] + report.by_value[None] == report.total
        assert report.failed == report.by_value[None] >= before >= 20
        assert report.by_status == {200: report.total}, report
        assert (await proxy.stats("listener_manager."))["listener_manager.lds.update_success"] == 2


async def test_the_load_counts_every_request_that_a_dead_proxy_loses(
    tmp_path: Path, listener: tuple[Path, int]
) -> None:
    lds, port = listener
    async with (
        upstream() as service,
        envoy(tmp_path, lds=lds, clusters={"service": service.host}) as proxy,
        Load(f"{ports.LOOPBACK}:{port}").steady() as report,
    ):
        while report.total < 20:
            await asyncio.sleep(0.01)
        assert report.failed == 0, report
        await proxy.process.kill()
        while report.failed < 5:
            await asyncio.sleep(0.01)
    assert report.failures[0].detail


async def test_foreign_clients_use_the_registry_and_it_survives_a_stop(tmp_path: Path) -> None:
    home = tmp_path / "home"
    crane, oras = await clients.crane(home), await clients.oras(home)
    module = await asyncio.to_thread(wat.compile_text, _EMPTY_MODULE)
    await asyncio.to_thread((home / "filter.wasm").write_bytes, module)
    async with registry.distribution(tmp_path / "registry") as server:
        reference = f"{server.host}/team/filter:v1"
        await oras.run("push", "--plain-http", reference, "filter.wasm:application/wasm")
        await server.stop()
        with pytest.raises(ConnectionRefusedError):
            await wire.get(f"{server.url}/v2/")
        await server.start()
        manifest = json.loads((await crane.run("manifest", reference)).stdout)
        assert manifest["layers"][0]["size"] == len(module)
        await crane.run("tag", reference, "v2")
        assert (await crane.run("ls", f"{server.host}/team/filter")).stdout.split() == ["v1", "v2"]


async def test_a_registry_with_passwords_and_tls_refuses_those_without(tmp_path: Path) -> None:
    tls = await asyncio.to_thread(Authority().issue, tmp_path / "tls")
    home = tmp_path / "home"
    oras = await clients.oras(home)
    async with registry.distribution(
        tmp_path / "registry", users={"ann": "secret"}, tls=tls
    ) as server:
        assert server.url.startswith("https://")
        listing = ("repo", "ls", "--ca-file", tls.authority, server.host)
        with pytest.raises(clients.ClientError, match="basic credential not found"):
            await oras.run(*listing)
        with pytest.raises(clients.ClientError, match="certificate"):
            await oras.run("repo", "ls", server.host)
        await oras.run(*listing, "--username", "ann", "--password-stdin", stdin=b"secret")


async def test_the_small_registry_takes_a_push(tmp_path: Path) -> None:
    home = tmp_path / "home"
    crane = await clients.crane(home)
    layer = home / "layer"
    await asyncio.to_thread(layer.write_bytes, b"anything")
    async with registry.crane(tmp_path / "registry") as server:
        await crane.run("append", "--new_layer", layer, "--new_tag", f"{server.host}/filter:v1")
        assert (await crane.run("catalog", server.host)).stdout.split() == ["filter"]


@pytest.mark.parametrize("size", [1000, 70_000, 33_554_432])
def test_padding_makes_a_valid_module_of_the_wanted_size(size: int) -> None:
    module = wat.padded(wat.header_filter("world"), size=size)
    assert len(module) == size
    wasmtime.Module.validate(wasmtime.Engine(), module)


def test_text_becomes_a_module_and_nonsense_an_error() -> None:
    assert wat.compile_text(_EMPTY_MODULE) == b"\0asm\1\0\0\0"
    with pytest.raises(Exception, match="unexpected token"):
        wat.compile_text("(nonsense)")
