"""The status of an AutoWasm after its source has refused, by a real `wasmer standalone`."""

import json
from pathlib import Path
from typing import Any

from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.parts import envoy as envoys
from tests.parts import registry, wasmer
from tests.parts.certificates import Authority


def autowasm(name: str, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "wasm.tcm.io/v1alpha1",
        "kind": "AutoWasm",
        "metadata": {"name": name},
        "spec": {
            "filter": {"source": source},
            "selector": {"matchLabels": {"app": "details"}},
        },
    }


def image(name: str, reference: str) -> dict[str, Any]:
    return autowasm(name, {"registry": {"image": reference}})


async def refusing_store(exchange: Exchange) -> None:
    body = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    await exchange.send(403, body, {"Content-Type": "application/xml"})


async def refusing_registry(exchange: Exchange) -> None:
    body = b'{"errors":[{"code":"DENIED","message":"the project is over its quota"}]}'
    await exchange.send(403, body, {"Content-Type": "application/json"})


async def test_status_has_the_message_of_the_source_and_only_useful_advice(
    tmp_path: Path,
) -> None:
    tls = Authority().issue(tmp_path / "tls")
    expired = Authority().issue(tmp_path / "expired", ended=True)
    async with (
        ScriptedServer(refusing_store) as store,
        ScriptedServer(refusing_registry) as denied,
        registry.distribution(tmp_path / "with-tls", tls=tls) as with_tls,
        registry.distribution(tmp_path / "with-expired", tls=expired) as with_expired,
        wasmer.standalone(
            tmp_path / "wasmer",
            template=envoys.listeners_yaml([1], cluster="web"),
            plain_http=[denied.host, with_tls.host],
            arguments=["--registry-ca-file", f"{with_expired.host}={expired.authority}"],
        ) as server,
    ):
        url = f"{store.url}/m.wasm?X-Amz-Signature=s3cret"
        server.apply(autowasm("store", {"object": {"url": url}}))
        server.apply(image("denied", f"{denied.host}/team/filter:v1"))
        server.apply(image("plain", f"{with_tls.host}/team/filter:v1"))
        server.apply(image("expired", f"{with_expired.host}/team/filter:v1"))
        server.apply(image("port", "registry.example:70000/team/filter:v1"))
        expected = {
            "store": ("AccessDenied: Request has expired", "put a new URL into the spec"),
            "denied": ("DENIED: the project is over its quota", "in spec.secret"),
            "plain": ("TLS (https)", "remove the host from wasmer --plain-http-registry"),
            "expired": ("its certificate has expired", "must be renewed"),
            "port": ("spec.filter.source.registry.image", "from 1 to 65535, not 70000"),
        }
        for name, parts in expected.items():
            status = await server.wait_phase(name, "Failed")
            (message,) = {
                condition["message"]
                for condition in status["conditions"]
                if condition["type"] == "Fetched"
            }
            for part in parts:
                assert part in message, (name, message)
            assert message.isprintable()
            assert "s3cret" not in message
        assert "Traceback" not in (tmp_path / "wasmer" / "wasmer.log").read_text()
        assert "or a signed one" not in json.dumps(server.status("store"))
        assert "ca-file" not in json.dumps(server.status("expired"))
