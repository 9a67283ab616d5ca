"""The output of `wasmc explain` and `wasmc plan`, and the input that they read before they connect to a cluster."""

import argparse
import asyncio
import json
import os
from pathlib import Path

import pytest
import yaml

from autowasm.api import validation
from autowasm.artifacts.pullsecrets import PullAccess
from autowasm.cli import clusters, explain, findings, sources
from autowasm.cli.plan import plan_text
from autowasm.errors import UsageError
from autowasm.explain import plan as plans
from autowasm.explain.examine import examine
from autowasm.explain.facts import SourceFact
from autowasm.explain.finding import Finding, Level, Step
from autowasm.explain.objects import Pod
from autowasm.kube.resources import ObjectKey
from autowasm.net.pools import Pools
from autowasm.settings import EnvoyFetch
from tests.fakes.modulesource import sha256_of
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.parts import wat
from tests.parts.clients import Client
from tests.parts.explained import RECORD, autowasm, decoded, facts, pod

FILTER = """(module {} (memory (export "memory") 1)
(func (export "proxy_abi_version_0_2_1"))
(func (export "malloc") (param i32) (result i32) (i32.const 0)))"""


def _arguments(**given: object) -> argparse.Namespace:
    values = {"kubeconfig": None, "context": None, "namespace": None, **given}
    return argparse.Namespace(**values)


def _long(level: Level) -> Finding:
    return Finding(
        level=level,
        step=Step.ENVOYFILTER,
        check="Long",
        object="EnvoyFilter " + "a" * 120,
        what="many words " * 30 + "\x1b[31mred\n",
        field="spec.x",
        remedy="do this " * 30,
    )


@pytest.mark.parametrize("width", [10, 60, 80, 100, 300])
def test_table_is_no_wider_than_the_terminal_and_shows_no_control_characters(width: int) -> None:
    text = findings.table("x", [_long(level) for level in Level], width=width, colour=False)
    assert max(map(len, text.splitlines())) <= max(60, min(width, 100))
    assert "\x1b" not in text


def test_table_is_coloured_only_when_asked() -> None:
    rows = [_long(Level.ERROR)]
    assert findings.table("x", rows, width=80, colour=True).count("\x1b[31merror\x1b[0m") == 1


def test_headline_counts() -> None:
    rows = [_long(Level.ERROR), _long(Level.ERROR), _long(Level.WARNING), _long(Level.OK)]
    assert findings.headline(rows) == "2 errors, 1 warning"
    assert findings.headline([]).startswith("no problems found")


def test_json_holds_every_finding() -> None:
    given = facts(unread={"mesh": "RBAC"})
    found = examine(given)
    document = json.loads(json.dumps(findings.as_json(given, found)))
    assert document["verdict"] == "note"
    assert document["notChecked"] == {"mesh": "RBAC"}
    assert {"Pods", "Port", "EnvoyFilter"} <= {one["check"] for one in document["findings"]}
    keys = ["level", "step", "check", "object", "field", "what", "remedy"]
    assert [list(one) for one in document["findings"]] == [keys] * len(document["findings"])


def _plan(live: dict[str, object] | None, **fields: object) -> plans.Plan:
    given = facts(autowasm(**fields))
    assert given.autowasm is not None
    return plans.make(
        given.autowasm, document=given.document, live=live, record=RECORD, envoy=EnvoyFetch()
    )


def test_plan_creates_changes_or_leaves() -> None:
    created = _plan(None)
    assert (created.action, created.diff.startswith("--- live\n+++ planned\n")) == ("create", True)
    assert created.after is not None
    same = _plan(created.after)
    assert (same.action, same.diff) == ("unchanged", "")
    changed = _plan(created.after, priority=3)
    assert changed.action == "replace"
    lines = changed.diff.splitlines()[2:]
    assert [line for line in lines if line[0] in "+-"] == ["+  priority: 3"]
    foreign = {**created.after, "metadata": {"name": "test", "namespace": "team"}}
    assert _plan(foreign).action == "refused"


def test_plan_text_colours_the_diff_only_when_asked() -> None:
    given, plan = facts(planned=True), _plan(None)
    plain = plan_text(given, plan, examine(given), width=80, colour=False)
    assert "\x1b" not in plain
    assert "team/details-1  injected" in plain
    assert "\x1b[32m+" in plan_text(given, plan, (), width=80, colour=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"unread": {"pods": "RBAC"}}, "Pods: not checked"),
        ({"pods": ()}, "Pods: none"),
        ({"pods": (pod(), pod("b", proxy=False))}, "Pods: 2, 1 of them with a proxy"),
        ({"pods": tuple(pod(f"p-{n}") for n in range(50))}, "more"),
    ],
)
def test_plan_text_lists_the_matching_pods(changes: dict[str, object], says: str) -> None:
    given = facts(planned=True, **changes)
    same = _plan(_plan(None).after)
    text = plan_text(given, same, (), width=80, colour=False)
    assert says in text
    assert "---" not in text, "there is no diff"
    shown = text.count("  injected") + text.count("  not injected")
    if len(given.pods) > 10:
        assert f"and {len(given.pods) - shown} more" in text
        assert 0 < shown < len(given.pods)


async def test_a_source_that_does_not_answer_is_one_finding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hang(*_: object, **__: object) -> SourceFact:
        await asyncio.Event().wait()
        raise AssertionError("it was cancelled")

    monkeypatch.setattr(explain, "_RESOLVE_TIMEOUT", 0.01)
    monkeypatch.setattr(explain.sources, "resolve", hang)
    given = facts()
    assert given.autowasm is not None
    with Pools() as pools:
        found = await explain._resolve(
            given.autowasm, PullAccess(), None, _arguments(fetch=False), pools
        )
    assert (found.kind, found.reason) == ("SourceUnavailable", "Timeout")
    assert "no answer within" in found.problem


def test_a_spec_that_is_wrong_is_explained_too() -> None:
    document = autowasm(applyPorts=[70_000])
    base = explain._base(ObjectKey("team", "test"), document)
    assert base.autowasm is None
    assert base.spec_error is not None
    assert "applyPorts" in str(base.spec_error)


def _server(args: list[str], env: dict[str, str] | None = None) -> Pod:
    variables = [{"name": name, "value": value} for name, value in (env or {}).items()]
    container = {"name": "wasmer", "args": args, "env": variables}
    metadata = {"name": "wasmer-0", "namespace": "mesh-blue"}
    return decoded(Pod, {"metadata": metadata, "spec": {"containers": [container]}})


def test_servers_flags_and_environment_are_read_from_its_pod() -> None:
    args = ["controller", "--watch-namespace", "a", "--envoy-fetch-timeout=5s"]
    found = clusters.server_of(_server(args, {"WASMER_ROOT_NAMESPACE": "mesh"}))
    assert found is not None
    assert found.known
    assert found.cluster.watch_namespaces == ("a",)
    assert found.cluster.root_namespace == "mesh"
    assert found.envoy.timeout == 5
    assert found.envoy.authority == "wasmer.mesh-blue:8081", "as wasmer takes it from its own Pod"


@pytest.mark.parametrize("args", [["controller", "--of-tomorrow"], ["controller", "extra"], ["x"]])
def test_servers_flags_that_are_not_understood_are_not_known(args: list[str]) -> None:
    assert clusters.server_of(_server(args)) is None
    assert clusters.server_of(pod()) is None


def test_namespace_is_the_contexts(tmp_path: Path) -> None:
    config = {
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"namespace": "team"}},
            {"name": "two", "context": {}},
        ],
    }
    file = tmp_path / "config"
    file.write_text(yaml.safe_dump(config))
    environment = {"KUBECONFIG": f"{tmp_path}/absent:{file}"}
    assert clusters.namespace(_arguments(), environment) == "team"
    assert clusters.namespace(_arguments(context="two"), environment) == "default"
    assert clusters.namespace(_arguments(namespace="mine"), environment) == "mine"
    with pytest.raises(UsageError, match="no such file"):
        clusters.kubeconfig(_arguments(kubeconfig=tmp_path / "absent"), {})


def test_without_any_kubeconfig_the_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config \(absent\).*Use --kubeconfig"):
        clusters.kubeconfig(_arguments(), {"HOME": str(tmp_path)})
    in_pod = {"HOME": str(tmp_path), "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert clusters.kubeconfig(_arguments(), in_pod) is None
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").write_text("{}")
    assert clusters.kubeconfig(_arguments(), in_pod) == tmp_path / ".kube" / "config"


def test_a_kubeconfig_that_cannot_be_looked_at_is_named() -> None:
    with pytest.raises(UsageError, match="File name too long"):
        clusters.kubeconfig(_arguments(), {"HOME": "/" + "x" * 300})


@pytest.mark.parametrize("text", ["[", "contexts: 1\ncurrent-context: x\n", "[]"])
def test_the_namespace_of_a_broken_kubeconfig_is_default(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    assert clusters.namespace(_arguments(), {"KUBECONFIG": str(file)}) == "default"


def test_a_user_without_a_home_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    with pytest.raises(UsageError, match="HOME is not set"):
        clusters.kubeconfig(_arguments(), {})


async def test_plan_offline_names_the_invalid_field(wasmc: Client) -> None:
    text = yaml.safe_dump(autowasm(applyPorts=[0])).encode()
    done = await wasmc.run("plan", "-f", "-", "--offline", "--json", stdin=text, check=False)
    (answer,) = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    assert answer["findings"][0]["field"] == "spec.filter.applyPorts[0]"


@pytest.mark.parametrize("text", ["", "a: [", "kind: Pod\napiVersion: v1\n"])
async def test_plan_of_a_file_without_autowasm_is_a_usage_error(wasmc: Client, text: str) -> None:
    stdin = text.encode()
    done = await wasmc.run("plan", "-f", "-", "--offline", stdin=stdin, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("wasmc: error: -f -")


async def test_object_is_downloaded_and_judged_with_fetch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = "(tag $t) (func (try (do (throw $t)) (catch_all)))"
    module = wat.compile_text(FILTER.format(body))

    async def serve(exchange: Exchange) -> None:
        await exchange.send(body=module)

    async with ScriptedServer(serve) as server:
        given = validation.parse(autowasm(source={"object": {"url": f"{server.url}/x.wasm"}}))
        arguments = _arguments(
            ca_file=None, quiet=False, allow_import=[], envoy_version=None, fetch=True
        )
        with Pools() as pools:
            found = await sources.resolve(
                given, PullAccess(), None, arguments, pools=pools, fetch=True
            )
    assert found.problem == ""
    assert found.record is not None
    assert found.record.sha256 == sha256_of(module)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("wasmc: warning: ")
    assert "x.wasm: 1 of 3 function bodies were not validated" in warning


async def test_unreachable_cluster_is_a_usage_error_that_suggests_offline(
    wasmc: Client, tmp_path: Path
) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "s3cret"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    done = await wasmc.run(
        "plan", "-f", "-", "--kubeconfig", str(tmp_path / "config"),
        stdin=yaml.safe_dump(autowasm()).encode(), check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "the cluster cannot be queried" in done.stderr
    assert "use --offline to plan without a cluster" in done.stderr
    assert "s3cret" not in done.stderr


def test_condition_of_the_start_is_a_finding_with_a_command_that_repeats_it() -> None:
    condition = {
        "type": "Starts",
        "status": "False",
        "reason": "ConfigurationRefused",
        "message": "spec.filter.pluginConfig: the module refuses it",
    }
    document = {
        **yaml.safe_load(autowasm_text()),
        "status": {"phase": "Failed", "conditions": [condition]},
    }
    base = explain._base(ObjectKey("shop", "gate"), document)
    (finding,) = [one for one in examine(base) if one.check == "Starts"]
    assert finding.level is Level.ERROR
    assert finding.field == "status.conditions[Starts]"
    command = "kubectl get autowasm gate -n shop -o yaml | wasmc run -f -"
    assert finding.remedy == f"correct the configuration; to reproduce: {command}"


def autowasm_text() -> str:
    return """
apiVersion: wasm.tcm.io/v1alpha1
kind: AutoWasm
metadata: {name: gate, namespace: shop}
spec:
  filter: {source: {registry: {image: registry.example/gate:v1}}, pluginConfig: please refuse}
  selector: {matchLabels: {app: a}}
"""
