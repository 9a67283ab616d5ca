"""Refusals of the API server and their messages; `validation.parse` refuses the rest."""

from collections.abc import Iterator

import pytest

from autowasm.api import validation
from autowasm.errors import SpecError
from tests.manifests.api import Judge
from tests.manifests.documents import Document, changed, image, labels, url, valid, with_filter
from tests.manifests.refusals import REFUSALS, Refusal
from tests.parts.kubernetes import Cluster

_HEX = "0123456789abcdef" * 4

ACCEPTED = {
    "small": valid(),
    "no tag": image("registry.example.com/team/hello"),
    "docker hub": image("nginx"),
    "port": image("localhost:5000/hello:v1"),
    "ipv6": image("[2001:db8::1]:5000/team/hello:v1"),
    "upper host": image("Registry.Example.COM/a:V1"),
    "tag and digest": image(f"a.io/b/c__d---e.f:v1@sha256:{_HEX}"),
    "longest image": image(f"{'h' * 60}.io/{'r' * 191}:{'t' * 128}@sha512:{_HEX * 2}"),
    "query": url("https://bucket.example.com/a%20b.wasm?X-Signature=a/b?c@d"),
    "scheme in capitals": url("HTTP://a.io"),
    "empty fragment": url("http://a.io/b#"),
    "ipv6 url": url("http://[::1]:8080/x.wasm"),
    "every Pod": labels({}),
    "empty label value": labels({"app": ""}),
    "prefixed label": labels({"app.kubernetes.io/name": "Details_v1.2"}),
    "config object": with_filter(pluginConfig={"a": [1, 2.5, None, True, {"b": "c"}]}),
    "empty config object": with_filter(pluginConfig={}),
    "config string": with_filter(pluginConfig="a=b"),
    "empty config string": with_filter(pluginConfig=""),
    "env without value": with_filter(env=[{"name": "A"}, {"name": "B", "value": ""}]),
    "all ports": with_filter(applyPorts=[1, 65535]),
    "empty ids": with_filter(rootID="", vmID=""),
    "any letters": with_filter(rootID="größe ✓"),
    "interval": with_filter(refreshInterval="30s"),
    "interval in parts": with_filter(refreshInterval="1h30m0.5s"),
    "interval in days": with_filter(refreshInterval="1d"),
    "choices": with_filter(failStrategy="FAIL_RELOAD", context="GATEWAY", pullPolicy="Always"),
    "priority": with_filter(priority=-(2**31)),
    "rollout": changed(lambda spec: spec.update(rollout={})),
    "rollout with everything": changed(
        lambda spec: spec.update(
            rollout={
                "steps": [1, "10%", 100, "100%"],
                "pause": "1s",
                "deadline": "1h30m",
                "maxFailureRatio": 0,
                "onUnknown": "Continue",
            }
        )
    ),
}


@pytest.fixture(scope="module")
def judge(cluster: Cluster) -> Iterator[Judge]:
    with Judge(cluster) as judge:
        yield judge


@pytest.mark.parametrize("case", [r for r in REFUSALS if r.sentence], ids=lambda r: r.name)
def test_the_api_server_refuses_with_a_sentence(case: Refusal, judge: Judge) -> None:
    said = judge.refusal(case.document)
    assert said is not None, "it was let through"
    assert case.sentence is not None
    assert case.sentence in said


@pytest.mark.parametrize("case", [r for r in REFUSALS if not r.sentence], ids=lambda r: r.name)
def test_the_schema_accepts_errors_that_it_cannot_express(case: Refusal, judge: Judge) -> None:
    assert judge.refusal(case.document) is None
    assert case.field, "nobody refuses it"


@pytest.mark.parametrize("case", [r for r in REFUSALS if r.field], ids=lambda r: r.name)
def test_parsing_refuses_the_same_at_the_field(case: Refusal) -> None:
    with pytest.raises(SpecError) as refused:
        validation.parse(case.document)
    assert refused.value.field == case.field


@pytest.mark.parametrize("document", ACCEPTED.values(), ids=ACCEPTED)
def test_both_accept(document: Document, judge: Judge) -> None:
    validation.parse(document)
    assert judge.refusal(document) is None
