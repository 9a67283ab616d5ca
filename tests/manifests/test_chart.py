"""The chart without an API server: it agrees with crd.yaml, install.yaml and the table of flags, and refuses wrong values."""

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from autowasm.cli import wasmerflags
from autowasm.cli.options import Option
from autowasm.cli.wasmer import build_parser
from autowasm.controller.sourcepolicy import SourcePolicy
from autowasm.settings import PreflightMode, Settings
from tests.manifests import charts
from tests.manifests.documents import ROOT, Document
from tests.parts import provision
from tools.generate import chart, manifests
from tools.generate.paths import CHART

_OPTIONS = manifests.options()
_CONFIG = {manifests.camel(name): _OPTIONS[name] for name in _OPTIONS.keys() - manifests.ELSEWHERE}
# Values that are not a default, by their name in the help.
_SAMPLES = {
    "CIDR": "10.9.0.0/16",
    "DURATION": "14s",
    "HOST:PORT": "wasmer.example.com:80",
    "SIZE": "3Gi",
    "URL": "http://proxy.example.com:3128",
    "N": 7,
}
_BY_NAME = {
    "log_level": "debug",
    "log_format": "console",
    "renew_deadline": "9s",
    "envoy_version": "1.39",
    "preflight": "strict",
}


def _sample(option: Option) -> Any:
    if option.switch:
        return not option.default
    value = _BY_NAME.get(option.name, _SAMPLES.get(option.metavar, "some-name"))
    return [value, value] if option.repeatable else value


def _settings(args: list[str]) -> Settings:
    args = [word for word in args if not word.startswith("--registry-ca-file=")]  # has to be there
    return wasmerflags.settings_from(build_parser().parse_args(args), environment={})


def test_files_written_by_make_manifests_are_up_to_date() -> None:
    assert manifests.INSTALL.read_text() == manifests.install()
    assert manifests.SCHEMA.read_text() == manifests.schema()
    assert chart.README.read_text() == chart.readme()
    for target, source in manifests.copies().items():
        assert target.read_bytes() == source.read_bytes(), f"{target}: make manifests"
    copied = {path for path in (CHART / "files").rglob("*") if path.is_file()}
    assert copied == manifests.copies().keys()


def test_the_version_is_the_programs() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_every_flag_has_a_value() -> None:
    assert manifests.ELSEWHERE.keys() <= _OPTIONS.keys()
    schema = json.loads(manifests.SCHEMA.read_text())["properties"]
    assert schema["config"]["properties"].keys() == _CONFIG.keys()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values.keys() == schema.keys()
    places = set(manifests.ELSEWHERE.values()) - {manifests.ELSEWHERE["kubeconfig"]}
    for place in places:
        assert place.partition(".")[0] in values


def test_every_flag_can_be_set() -> None:
    config = {name: _sample(option) for name, option in _CONFIG.items()}
    args = charts.container(charts.render(config=config, replicas=1))["args"]
    plain = build_parser().parse_args(["controller"])
    given = build_parser().parse_args(args)
    unchanged = [
        option.flag
        for option in _CONFIG.values()
        if getattr(given, option.name) == getattr(plain, option.name)
    ]
    assert unchanged == []
    assert _settings(args).drain_delay == 14


@pytest.mark.parametrize("values", charts.VALUES, ids=lambda path: path.stem)
def test_wasmer_settings_match_the_rendered_service_and_roles(values: Path) -> None:
    objects = charts.render(values)
    container, name = charts.container(objects), charts.workload(objects)["metadata"]["name"]
    settings = _settings(container["args"])
    assert settings.envoy.service_name == name
    service = objects["Service", name]
    assert service["metadata"]["namespace"] == settings.envoy.service_namespace
    assert service["spec"]["ports"][0]["port"] == settings.envoy.service_port
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.listen == f"[::]:{ports['http-wasm']}"
    assert settings.admin_listen == f"[::]:{ports['http-admin']}"
    assert ports["http-wasm"] == settings.envoy.service_port, "peers ask at the service's port"
    if ("Role", f"{name}-leader-election") in objects:
        assert settings.cluster is not None
        change = objects["Role", f"{name}-leader-election"]["rules"][1]
        assert change["resourceNames"] == [settings.cluster.election.lease_name]
        (look,) = objects["Role", f"{name}-service"]["rules"]
        assert look["resourceNames"] == [settings.envoy.service_name]


@pytest.mark.parametrize("values", charts.VALUES, ids=lambda path: path.stem)
def test_services_select_wasmers_pods_and_no_other(values: Path) -> None:
    objects = charts.render(values)
    workload = charts.workload(objects)["spec"]
    labels = workload["template"]["metadata"]["labels"]
    hooks = [
        one["spec"]["template"]["metadata"]["labels"] for one in objects.values() if _is_hook(one)
    ]
    for (kind, _), document in objects.items():
        if kind in {"Service", "NetworkPolicy", "PodDisruptionBudget"}:
            spec = document["spec"]
            selector = spec.get("podSelector", spec.get("selector", {}))
            selector = selector.get("matchLabels", selector)
            assert selector
            assert selector.items() <= labels.items()
            assert not any(selector.items() <= hook.items() for hook in hooks)


def _is_hook(document: Document) -> bool:
    return bool(document["kind"] == "Job")


@pytest.mark.parametrize("values", charts.VALUES, ids=lambda path: path.stem)
def test_every_mount_has_a_volume_and_every_namespaced_object_its_namespace(values: Path) -> None:
    objects = charts.render(values)
    workload = charts.workload(objects)["spec"]
    volumes = [one["name"] for one in workload["template"]["spec"].get("volumes", ())]
    volumes += [one["metadata"]["name"] for one in workload.get("volumeClaimTemplates", ())]
    assert sorted(volumes) == sorted(
        one["name"] for one in charts.container(objects)["volumeMounts"]
    )
    cluster_wide = {
        "ClusterRole",
        "ClusterRoleBinding",
        "PriorityClass",
        "CustomResourceDefinition",
    }
    for (kind, name), document in objects.items():
        assert ("namespace" in document["metadata"]) == (kind not in cluster_wide), (kind, name)


def test_roles_of_users_can_be_left_out() -> None:
    users = {("ClusterRole", "wasmer-view"), ("ClusterRole", "wasmer-edit")}
    assert users <= charts.render().keys()
    for rbac in ({"aggregate": False}, {"create": False}):
        assert not users & charts.render(rbac=rbac).keys()


def test_the_crd_is_kept_and_can_be_left_out() -> None:
    name = ("CustomResourceDefinition", "autowasms.wasm.tcm.io")
    crd = charts.render()[name]
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == yaml.safe_load((ROOT / "manifests/crd.yaml").read_text())
    assert name not in charts.render(crd={"install": False})


def test_a_new_certificate_restarts_the_pods_and_a_new_policy_does_not() -> None:
    pem = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"

    def template(**settings: Any) -> Document:
        result: Document = charts.workload(charts.render(**settings))["spec"]["template"]
        return result

    one, two = (template(registryCa=[{"pem": pem.format(n)}]) for n in "ab")
    assert one != two
    rules = ({"namespaces": {"*": {"digestRequired": required}}} for required in (True, False))
    assert template(policy=next(rules)) == template(policy=next(rules)), "wasmer follows the file"


def test_the_policy_is_one_that_wasmer_understands() -> None:
    (values,) = [path for path in charts.VALUES if path.stem.startswith("registries")]
    text = charts.render(values)["ConfigMap", "wasmer-policy"]["data"]["policy.yaml"]
    policy = SourcePolicy.parse(text.encode())
    assert policy.object_hosts("team-a") == ()
    found = policy.rule_for("team-a")
    assert found is not None
    assert (found[1].preflight, found[1].allow_preflight_override) == (PreflightMode.OFF, True)


@pytest.mark.parametrize("values", charts.VALUES, ids=lambda path: path.stem)
def test_helm_lint_finds_nothing(values: Path) -> None:
    command = [provision.helm(), "lint", "--strict", CHART, "--values", values]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"config": {"logLevl": "debug"}}, "'/config': additional properties 'logLevl'"),
        ({"config": {"logLevel": "loud"}}, "'/config/logLevel': value must be one of 'debug'"),
        ({"config": {"preflight": False}}, "'/config/preflight': value must be one of 'off'"),
        (
            {"policy": {"namespaces": {"a": {"preflight": False}}}},
            "'/policy/namespaces/a/preflight': value must be one of 'off'",
        ),
        ({"config": {"blobGrace": 24}}, "'/config/blobGrace'"),
        ({"config": {"diskBudget": "8 gigabytes"}}, "'/config/diskBudget'"),
        ({"config": {"listen": "[::]:1"}}, "'/config': additional properties 'listen'"),
        ({"config": {"allowCidr": "10.0.0.0/8"}}, "'/config/allowCidr'"),
        ({"replicas": 0}, "'/replicas'"),
        ({"replica": 2}, "additional properties 'replica'"),
        ({"name": "Wasmer"}, "'/name'"),
        ({"image": {"digest": "abc"}}, "'/image/digest'"),
        ({"service": {"port": 70000}}, "'/service/port'"),
        ({"registryCa": [{"host": "a"}]}, "'/registryCa/0'"),
        ({"registryCa": [{"pem": "secret.pem"}]}, "'/registryCa/0/pem'"),
        ({"policy": {"namespaces": {"a": {"registry": []}}}}, "'/policy/namespaces/a'"),
        ({"extraArgs": ["log-level=debug"]}, "'/extraArgs/0'"),
        ({"config": {"leaderElect": False}}, "all of them would write"),
        ({"rbac": {"clusterWide": False}}, "config.watchNamespace"),
        (
            {"registryCa": [{"secret": "a"}, {"secret": "b"}]},
            "only one entry may be without a host",
        ),
        (
            {"policy": {"configMap": "a", "namespaces": {"*": {}}}},
            "either namespaces or configMap",
        ),
    ],
)
def test_wrong_values_are_refused_with_the_place(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(charts.Refused) as refused:
        charts.render(**settings)
    assert said in str(refused.value)


def _without_rules(schema: Any) -> Any:
    if isinstance(schema, dict):
        rest = {key: value for key, value in schema.items() if key != "x-kubernetes-validations"}
        return {key: _without_rules(value) for key, value in rest.items()}
    return [_without_rules(one) for one in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize(
    ("kube_version", "rules"),
    [("1.16.15", False), ("1.22.17-eks-1", False), ("1.23.0-gke.1", True), ("1.36.3", True)],
)
def test_the_resource_has_rules_only_where_the_api_server_knows_the_field(
    kube_version: str, rules: bool
) -> None:
    """Helm refuses fields that are not in the API server's own schema of a CustomResourceDefinition."""
    key = ("CustomResourceDefinition", "autowasms.wasm.tcm.io")
    image = {"repository": "r.example/wasmer"}
    newest = charts.render(image=image)[key]
    found = charts.render(image=image, kube_version=kube_version)[key]

    assert newest != _without_rules(newest)
    assert found == (newest if rules else _without_rules(newest))


@pytest.mark.parametrize(("kube_version", "profile"), [("1.18.20", False), ("1.19.0-eks-1", True)])
def test_the_workload_has_a_seccomp_profile_only_where_the_api_server_knows_the_field(
    kube_version: str, profile: bool
) -> None:
    objects = charts.render(image={"repository": "r.example/wasmer"}, kube_version=kube_version)
    context = charts.workload(objects)["spec"]["template"]["spec"]["securityContext"]
    assert ("seccompProfile" in context) is profile
    assert context["runAsUser"] == 65532
