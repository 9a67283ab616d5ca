"""The output of `manifests.writer`, read by the real readers: Envoy (yaml-cpp), kubectl's code (go-yaml) and PyYAML."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from autowasm.manifests import writer
from tests.parts import envoy as envoys
from tests.parts import ports, pypi
from tests.parts.kubectlyaml import Kubectl, kubectl
from tests.property.test_kubectl_yaml import WORDS

TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(WORDS),
    st.text(alphabet="yntruefalsonoff~.-+_0123456789xobeEinfaN: ", max_size=8),
    st.text(alphabet="\n\r\t\x85\u2028\u2029\xa0\ufeff #:-?&*!|>'\"%@`\\/{}[],<=\x00\x07\x7f\U0001f600a", max_size=12),
)  # fmt: skip
ODD = [
    *WORDS, "", " ", " a", "a ", "a\n", "\na", "a\n\n b\n", "\t", "#", "a # b", "a: b", "- a", "? a", "&a", "*a", "!a", "|", ">", "%a",
    "@a", "`a`", "{a}", "[a]", ",", "---", "...", "--- a", "<<", "=", "\x00", "\x1b[0m", "\x7f", "\x80", "\x85", "\xa0", "\xad", "\u2028",
    "\u2029", "\ufeff", "\ufffe", "\uffff", "\U0001f600", "\U0010ffff", "é", "\\", '"', "'", "\\n", "a\\", "/", "x" * 5_000, "word " * 3_000,
]  # fmt: skip


@pytest.fixture(scope="module")
def oracle() -> Iterator[Kubectl]:
    with kubectl() as running:
        yield running


def documents(texts: list[str]) -> dict[str, Any]:
    return {"kind": "A", "texts": texts, "keys": {text: text for text in texts}}


def as_read(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXTS, max_size=8))
def test_kubectl_and_pyyaml_read_the_intended_texts(oracle: Kubectl, texts: list[str]) -> None:
    document = documents(texts)
    for text in (
        writer.dump(document),
        writer.dump(document, sort_keys=True),
        writer.dump_line(document) + "\n",
    ):
        result = oracle.read(text.encode())
        assert not result.error
        assert [as_read(each) for each in result.objects] == [as_read(document)]
        assert writer.read_back(text) == document


def test_kubectl_reads_every_odd_text(oracle: Kubectl) -> None:
    document = documents(ODD)
    (found,) = oracle.read(writer.dump(document).encode()).objects
    assert as_read(found) == as_read(document)


async def read_by_envoy(directory: Path, texts: list[str], version: str) -> list[Any]:
    """The texts in the metadata of two listeners, in block style and on one line, as Envoy shows them."""
    made = [yaml.safe_load(envoys.listeners_yaml([ports.free_port()], cluster="x")) for _ in "12"]
    listeners = [each["resources"][0] for each in made]
    for each in listeners:
        each["metadata"] = {"filter_metadata": {"test": documents(texts)}}
    block, line = listeners
    lds = directory / "lds.yaml"
    directory.mkdir(parents=True, exist_ok=True)
    lds.write_bytes(
        f"resources:\n{writer.dump_items([block])}- {writer.dump_line(line)}\n".encode()
    )
    found = {}
    async with envoys.envoy(
        directory, lds=lds, clusters={"x": "127.0.0.1:9"}, version=version
    ) as proxy:
        for each in (await proxy.config_dump())["configs"]:
            for one in each.get("dynamic_listeners", ()):
                listener = one["active_state"]["listener"]
                found[listener["name"]] = listener["metadata"]["filter_metadata"]["test"]
    return [found.get(each["name"]) for each in listeners]


@pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)
async def test_envoy_reads_every_odd_text(tmp_path: Path, version: str) -> None:
    assert await read_by_envoy(tmp_path / "envoy", ODD, version) == [documents(ODD)] * 2


@settings(
    deadline=None,
    max_examples=3,
    phases=[Phase.generate],  # each example is an Envoy, so none is made smaller
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(st.lists(TEXTS, min_size=40, max_size=400))
async def test_envoy_reads_the_intended_texts(tmp_path: Path, texts: list[str]) -> None:
    expected = [documents(texts)] * 2
    assert await read_by_envoy(tmp_path / "envoy", texts, pypi.ENVOY_VERSIONS[0]) == expected
