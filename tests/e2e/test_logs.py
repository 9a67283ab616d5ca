"""The log of a whole run at level debug: each fact once, with its keys; no credential, no URL's query."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Standalone, StandaloneStarter
from tests.fakes.objectserver import object_server
from tests.parts import wat, wire

PASSWORD, WRONG, SIGNATURE = "hunter2-s3cret", "wr0ng-s3cret", "sig-s3cret"


def login(standalone: Standalone, password: str) -> str:
    auth = base64.b64encode(f"alice:{password}".encode()).decode()
    return json.dumps({"auths": {standalone.registry.host: {"auth": auth}}})


def secret(standalone: Standalone, name: str, password: str) -> dict[str, Any]:
    data = base64.b64encode(login(standalone, password).encode()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "default"},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": data},
    }


def image(standalone: Standalone, name: str, pull_secret: str) -> dict[str, Any]:
    document = standalone.autowasm("unused", name=name)
    document["spec"]["filter"]["source"] = {"registry": {"image": standalone.image("v1")}}
    document["spec"]["secret"] = pull_secret
    return document


def object_(standalone: Standalone, name: str, url: str) -> dict[str, Any]:
    document = standalone.autowasm("unused", name=name)
    document["spec"]["filter"]["source"] = {"object": {"url": url}}
    return document


async def test_the_log_of_a_run(start_standalone: StandaloneStarter) -> None:
    talkative = ("--log-level", "debug", "--log-format", "json")
    standalone = await start_standalone(arguments=talkative, users={"alice": PASSWORD})
    docker = standalone.directory / ".docker"
    await asyncio.to_thread(_write_login, docker, login(standalone, PASSWORD))
    await standalone.push_header("v1")
    server, query = standalone.wasmer, f"?X-Signature={SIGNATURE}"
    server.apply(secret(standalone, "right", PASSWORD))
    server.apply(secret(standalone, "wrong", WRONG))
    server.apply(image(standalone, "allowed", "right"))
    await server.wait_phase("allowed", "Synced")
    server.apply(image(standalone, "refused", "wrong"))
    await server.wait_phase("refused", "Failed")
    async with object_server({"/module.wasm": wat.header_filter("v2")}) as url:
        server.apply(object_(standalone, "found", f"{url}/module.wasm{query}"))
        await server.wait_phase("found", "Synced")
        server.apply(object_(standalone, "absent", f"{url}/absent.wasm{query}"))
        await server.wait_phase("absent", "Failed")
    server.apply(object_(standalone, "silent", f"{url}/module.wasm{query}"))
    await server.wait_phase("silent", "Failed")
    for path in ("/wasm/none", "/readyz"):
        await wire.get(f"http://{server.host}{path}{query}")
        await wire.get(f"http://{server.admin}{path}{query}")

    text = await asyncio.to_thread(server.process.log.read_text)
    encoded = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
    for never in (PASSWORD, WRONG, SIGNATURE, "X-Signature", encoded, "Authorization"):
        assert never not in text, [line for line in text.splitlines() if never in line]
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"event", "level", "logger", "timestamp"} <= line.keys() for line in lines)
    ours = [line for line in lines if line["logger"].startswith("autowasm.")]
    for name in ("allowed", "found"):
        digest = server.status(name)["module"]["sha256"]
        stored = [line for line in ours if line["event"] == "module stored"]
        assert [line["digest"] for line in stored].count(digest) == 1
        published = [line for line in ours if line["event"] == "envoyfilter published"]
        told = [(line["key"], line["digest"]) for line in published]
        assert told.count((f"default/{name}", digest)) == 1
    for name in ("refused", "absent", "silent"):
        failed = [line for line in ours if line["event"] == "phase" and line["phase"] == "Failed"]
        assert [line["key"] for line in failed].count(f"default/{name}") == 1
        assert server.status(name)["message"]


def _write_login(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text)
