"""`make demo`: the main workflow on real parts, explained for newcomers.

Starts a real registry, a real Envoy, a service behind it and `wasmer standalone`, all on free ports of this machine; then
runs the real commands like the author of a filter. Not a test, but nothing here is simulated: every answer shown was
received. Its processes end with it.
"""

import asyncio
import tempfile
import textwrap
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.demo.narration import compiled, get_parts, run, say, show, step
from tests.parts import envoy as envoys
from tests.parts import ports, registry, wasmer, wire
from tests.parts.envoy import Envoy
from tests.parts.load import Load
from tests.parts.upstream import upstream
from tests.parts.wasmer import Wasmer

FILTER = Path(__file__).parents[2] / "examples/hello.wat"


@dataclass(slots=True)
class Demo:
    """The running parts, and their addresses."""

    folder: Path
    registry: str
    wasmer: Wasmer
    envoy: Envoy
    web: str
    """The address of Envoy's listener."""


async def wasmc(demo: Demo, *arguments: str) -> None:
    """Run `wasmc` as a person would, and show it."""
    await run(wasmer.wasmc(demo.folder), *arguments)


async def curl(demo: Demo) -> None:
    """GET through Envoy, and show the head of the answer."""
    print(f"   $ curl -i http://{demo.web}/", flush=True)
    answer = await wire.request("GET", f"http://{demo.web}/")
    lines = [f"HTTP/1.1 {answer.status}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    show("\n".join(lines))


def autowasm(demo: Demo, *, tag: str, port: int) -> dict[str, object]:
    """The object that a user writes."""
    return {
        "apiVersion": "wasm.tcm.io/v1alpha1",
        "kind": "AutoWasm",
        "metadata": {"name": "hello", "namespace": "default"},
        "spec": {
            "filter": {
                "source": {"registry": {"image": f"{demo.registry}/demo/hello:{tag}"}},
                "applyPorts": [port],
            },
            "selector": {"matchLabels": {"app": "details"}},
        },
    }


async def start(stack: AsyncExitStack, folder: Path) -> tuple[Demo, int]:
    """Start all parts, each on a free port."""
    web = await stack.enter_async_context(upstream())
    store = await stack.enter_async_context(registry.crane(folder / "registry"))
    port = ports.free_port()
    server = await stack.enter_async_context(
        wasmer.standalone(
            folder / "wasmer",
            template=envoys.listeners_yaml([port], cluster="details"),
            plain_http=[store.host],
        )
    )
    proxy = await stack.enter_async_context(
        envoys.envoy(
            folder / "envoy",
            lds=server.lds,
            clusters={"details": web.host, wasmer.ENVOY_CLUSTER: server.host},
        )
    )
    return Demo(folder, store.host, server, proxy, f"{ports.LOOPBACK}:{port}"), port


async def show_all(demo: Demo, port: int) -> None:
    """The story, step by step."""
    before = await demo.envoy.server_info()
    step("Before: a plain Envoy in front of a service")
    await curl(demo)

    step("Write a filter")
    say(
        f"""The filter is {FILTER.relative_to(Path.cwd()) if FILTER.is_relative_to(Path.cwd()) else FILTER}, a page
        of WebAssembly text written by hand: it adds the header hello: world to every response.
        wat2wasm compiles it."""
    )
    source = FILTER.read_text()
    await compiled(demo.folder / "hello.wasm", source)

    step("Push it to the registry, like a container image")
    image = f"{demo.registry}/demo/hello"
    await wasmc(demo, "push", f"{image}:v1", "-f", "hello.wasm")

    step("Apply an AutoWasm, which names the module and the port")
    document = autowasm(demo, tag="v1", port=port)
    show(yaml.safe_dump(document, sort_keys=False))
    load = Load(demo.web, header="hello")
    begun = time.monotonic()
    await asyncio.to_thread(demo.wasmer.apply, document)
    await load.wait_for("world")
    say(
        f"""{time.monotonic() - begun:.1f} s later wasmer has pulled the module, checked it, stored it under its
        sha256 and changed Envoy's listener; Envoy has fetched the module from wasmer and runs it:"""
    )
    await curl(demo)
    status = await demo.wasmer.wait_phase("hello", "Synced")
    say(f"wasmer reports: {status['phase']}: {status['message']}")

    step("Roll out a second version while requests keep coming")
    await compiled(demo.folder / "earth.wasm", source.replace('"world"', '"earth"'))
    await wasmc(demo, "push", f"{image}:v2", "-f", "earth.wasm")
    say("Now the AutoWasm names :v2. Every answer of the load must be 200 and carry the header.")
    async with load.steady() as report:
        await report.until("world", 20)
        await asyncio.to_thread(demo.wasmer.apply, autowasm(demo, tag="v2", port=port))
        await load.wait_for("earth")
        await report.until("earth", 20)
    await curl(demo)
    counts = ", ".join(f"{count} × hello: {value}" for value, count in report.by_value.items())
    say(f"The load: {report.total} requests, {report.failed} failed ({counts}).")
    after = await demo.envoy.server_info()
    say(
        f"""Envoy was not restarted: process {demo.envoy.process.pid}, up {before.uptime_seconds} s at the
        beginning and {after.uptime_seconds} s now, restart epoch {after.epoch}."""
    )
    if report.failed or after.epoch or after.uptime_seconds < before.uptime_seconds:
        raise SystemExit(f"This is not the expected result.\n{report}")


def what_next(demo: Demo, *, kept: bool) -> None:
    """Where to go from here."""
    step("What to try next")
    if not kept:
        say("make demo ARGS=--keep leaves everything running until Ctrl-C.")
    else:
        config = demo.wasmer.config
        print(
            textwrap.dedent(f"""\
            curl -i http://{demo.web}/                       the service through Envoy
            {wasmer.program("wasmc")} push {demo.registry}/demo/mine:v1 -f your.wasm
            edit {config}/hello.yaml         another image, ports, pluginConfig, failStrategy
            cat {demo.wasmer.directory}/envoy/status/default.hello.yaml       its status
            curl http://{demo.wasmer.admin}/metrics            the metrics of wasmer
            curl http://{demo.envoy.admin}/stats?filter=wasm   the statistics of Envoy
            tail -f {demo.wasmer.process.log}""")
        )
    say("README.md has a tour of five minutes, docs/architecture.md the packages of the code.")


async def main(*, keep: bool) -> None:
    """Set up, run the tour, clean up."""
    say(
        "AutoWasm puts a WebAssembly filter into a running Envoy. Getting the real parts (once) ..."
    )
    await get_parts("demo")
    with tempfile.TemporaryDirectory(prefix="autowasm-demo-") as name:
        async with AsyncExitStack() as stack:
            demo, port = await start(stack, Path(name))
            print(f"   registry  {demo.registry}   wasmer  {demo.wasmer.host}   Envoy  {demo.web}")
            await show_all(demo, port)
            what_next(demo, kept=keep)
            if keep:
                print("\nRunning. Ctrl-C ends it.", flush=True)
                await asyncio.Event().wait()
    print("\nAll processes of the demo have ended.")
