"""Hostile text in names, labels and images: refused with one line that names the field, or passed on unchanged."""

import asyncio
import json
from typing import Any

import pytest

from autowasm.api import validation
from autowasm.api.envoyfilter import render
from autowasm.errors import SpecError
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import document, record
from tests.hostile import inputs
from tests.hostile.conftest import autowasm
from tests.hostile.origin import Origin
from tests.parts.wasmer import Wasmer

STRINGS = [
    "a\nb",
    "a\r\nX-Injected: yes",
    "../../etc/passwd",
    "..%2f..%2fv2",
    "a\x00b",
    "\x1b[2Jgone",
    "{{ .Values.secret }}",
    "%{x}%(y)s$z${HOME}",
    "%DYNAMIC_METADATA(a:b)%",
    "r.example/a:v1?tls=no#x",
    "\u202egnp.exe",
    "ｆｕｌｌ.example/ａ",
    "İstanbul.example/a",
    "\ud800",
    "𝒶" * 300,
    "- a: &x [*x]",
    "x" * 1_500_000,
]
FIELDS: dict[str, Any] = {
    "image": lambda text: document(image=text),
    "image tag": lambda text: document(image=f"r.example/a:{text}"),
    "url": lambda text: document(source={"object": {"url": f"https://o.example/{text}"}}),
    "url host": lambda text: document(source={"object": {"url": f"https://{text}/a"}}),
    "label key": lambda text: document(spec={"selector": {"matchLabels": {text: "a"}}}),
    "label value": lambda text: document(spec={"selector": {"matchLabels": {"a": text}}}),
    "secret": lambda text: document(spec={"secret": text}),
    "vmID": lambda text: document(vmID=text),
    "rootID": lambda text: document(rootID=text),
    "sha256": lambda text: document(sha256=text),
    "env name": lambda text: document(env=[{"name": text, "value": "a"}]),
    "env value": lambda text: document(env=[{"name": "A", "value": text}]),
    "unknown field": lambda text: document(**{text: 1}),
    "interval": lambda text: document(refreshInterval=text),
    "pluginConfig": lambda text: document(pluginConfig=text),
    "pluginConfig key": lambda text: document(pluginConfig={text: {"a": float("nan")}}),
}
ALWAYS_REFUSED = ("image", "image tag", "label key", "label value", "secret", "sha256", "interval")


@pytest.mark.parametrize("field", FIELDS)
def test_a_string_is_refused_in_one_line_or_stays_in_its_place(field: str) -> None:
    for text in STRINGS:
        made, refusal = outcome(FIELDS[field](text))
        if refusal is not None:
            assert str(refusal).isprintable(), (field, text[:40])
            assert len(str(refusal)) < 3000
            assert refusal.field
            continue
        assert field not in ALWAYS_REFUSED, (field, text[:40])
        # The text is not interpreted and is in no other place: with another text the object differs only there.
        other, _ = outcome(FIELDS[field]("plain"))
        assert made.count(json.dumps(text)[1:-1]) <= other.count("plain") + 1


def outcome(given: dict[str, Any]) -> tuple[str, SpecError | None]:
    """The EnvoyFilter as JSON, or the reason why there is none."""
    try:
        return json.dumps(render(validation.parse(given), record(), EnvoyFetch())), None
    except SpecError as error:
        return "", error


@pytest.mark.timeout(120)
async def test_names_with_path_elements_write_no_file_outside_the_directory(
    server: Wasmer, hosts: list[Origin]
) -> None:
    before = await asyncio.to_thread(lambda: set(server.directory.parent.rglob("*evil*")))
    url = hosts[0].serve("/module", inputs.hello())
    for number, (namespace, name) in enumerate(
        [("default", "../../evil"), ("../../evil", "a"), ("default", "evil/../b"), ("a\nevil", "b")]
    ):
        server.apply(autowasm(name, namespace=namespace, url=url), file=f"bad{number}.yaml")
    server.apply(autowasm("good", namespace="default", url=url), file="good.yaml")
    await server.wait_phase("good", "Synced", timeout=60)
    after = await asyncio.to_thread(lambda: set(server.directory.parent.rglob("*evil*")))
    assert after == before
