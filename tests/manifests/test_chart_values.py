"""What the chart does with values that charts have in common, and how it documents all of them."""

import copy
import json
from typing import Any

import pytest
import yaml

from autowasm.cli.wasmer import build_parser
from tests.manifests import charts, combinations
from tests.manifests.documents import Document
from tools.generate import chart, manifests
from tools.generate.paths import CHART, ROOT

(EVERYTHING,) = [path for path in charts.VALUES if path.stem.startswith("everything")]


@pytest.fixture(scope="module")
def objects() -> dict[tuple[str, str], Document]:
    """The chart with everything that can be set on most charts."""
    return charts.render(EVERYTHING)


def _pod(objects: dict[tuple[str, str], Document]) -> Document:
    result: Document = charts.workload(objects)["spec"]["template"]
    return result


def test_the_combinations_have_any_two_choices_together_and_every_value_once() -> None:
    assert combinations.covered() == combinations.every_pair()
    tried = {name for choices in combinations.PARTS.values() for one in choices for name in one}
    values = yaml.safe_load((CHART / "values.yaml").read_text()).keys()
    others = {
        "nameOverride",
        "crd",
        "securityContext",
        "terminationGracePeriodSeconds",
        "extraArgs",
    }
    probes = {"startupProbe", "readinessProbe", "livenessProbe"}
    assert values - tried == others | probes


def test_every_value_is_described_in_the_readme_and_in_the_schema() -> None:
    text = chart.VALUES.read_text()
    texts = chart.descriptions(text)
    rows = [path for path, _ in chart.described(yaml.safe_load(text), texts)]
    assert rows == list(texts), "a comment describes no value"
    readme = chart.README.read_text()
    schema = json.loads(manifests.SCHEMA.read_text())
    for path in rows:
        assert f"| `{'.'.join(path)}` |" in readme
        node = schema
        for name in path:
            node = node["properties"][name]
        assert node["description"] == texts[path]


def test_a_value_without_a_description_is_an_error() -> None:
    text = "a:\n  # -- One.\n  b: 1\n  c: 2\n"
    with pytest.raises(ValueError, match=r"a\.c has no comment"):
        list(chart.described(yaml.safe_load(text), chart.descriptions(text)))


def test_a_description_may_have_several_lines() -> None:
    text = "# Not one.\na:\n  # -- One\n  # two.\n  b: {}\n  #  c: 1\n# -- Three.\nd: 1\n"
    assert chart.descriptions(text) == {("a", "b"): "One two.", ("d",): "Three."}


def test_service_has_its_default_name_for_any_release_name() -> None:
    found = charts.render()
    assert ("Service", "wasmer") in found
    assert found["Service", "wasmer"]["metadata"]["namespace"] == "istio-system"


@pytest.mark.parametrize(
    ("settings", "name", "namespace"),
    [
        ({"nameOverride": "a"}, "a", "istio-system"),
        ({"name": "b", "nameOverride": "a"}, "a", "istio-system"),
        ({"nameOverride": "a", "fullnameOverride": "c"}, "c", "istio-system"),
        ({"namespace": "red", "namespaceOverride": "blue"}, "wasmer", "blue"),
    ],
)
def test_the_usual_names_of_overrides_win(
    settings: dict[str, Any], name: str, namespace: str
) -> None:
    usual = charts.render(name=name, namespace=namespace)
    assert charts.render(**settings) == usual


def test_every_object_has_the_standard_and_the_common_labels(
    objects: dict[tuple[str, str], Document],
) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    ours = [one for key, one in objects.items() if key[0] != "CustomResourceDefinition"]
    ours = [one for one in ours if one["metadata"]["name"] not in {"as-text", "mesh-wasmer-extra"}]
    standard = {
        "helm.sh/chart": f"wasmer-{version}",
        "app.kubernetes.io/instance": "release",
        "app.kubernetes.io/version": version,
        "app.kubernetes.io/managed-by": "Helm",
        "app.kubernetes.io/part-of": "autowasm",
    }
    for one in ours:
        labels, annotations = one["metadata"]["labels"], one["metadata"]["annotations"]
        assert standard.items() <= labels.items(), one["metadata"]
        expected = (
            "edge"
            if one["metadata"]["name"] == "mesh-wasmer" and one["kind"] == "Service"
            else "identity"
            if one["metadata"]["name"] == "mesh-wasmer" and one["kind"] == "ServiceAccount"
            else "mesh"
        )
        assert labels["team"] == expected
        assert annotations["example.com/owner"] == "mesh"
    assert _pod(objects)["metadata"]["labels"]["team"] == "mesh"


def test_a_new_version_of_the_chart_changes_no_selector() -> None:
    found = charts.render()
    for selector in (
        charts.workload(found)["spec"]["selector"]["matchLabels"],
        found["Service", "wasmer"]["spec"]["selector"],
    ):
        assert selector == {"app.kubernetes.io/name": "wasmer"}


def test_pull_secrets_of_a_parent_chart_are_added(
    objects: dict[tuple[str, str], Document],
) -> None:
    wanted = [{"name": "mine"}, {"name": "everywhere"}]
    assert _pod(objects)["spec"]["imagePullSecrets"] == wanted
    hooks = [one["spec"]["template"]["spec"] for (kind, _), one in objects.items() if kind == "Job"]
    assert [one["imagePullSecrets"] for one in hooks] == [wanted, wanted]


def test_pod_settings_follow_the_values(objects: dict[tuple[str, str], Document]) -> None:
    values = yaml.safe_load(EVERYTHING.read_text())
    spec = _pod(objects)["spec"]
    for name in ("dnsPolicy", "dnsConfig", "hostAliases", "initContainers", "runtimeClassName"):
        assert spec[name] == values[name]
    assert spec["containers"][1:] == values["extraContainers"]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    hooks = [one["spec"]["template"]["spec"] for (kind, _), one in objects.items() if kind == "Job"]
    assert [one["runtimeClassName"] for one in hooks] == ["gvisor", "gvisor"]
    metadata = charts.workload(objects)["metadata"]
    assert values["deploymentAnnotations"].items() <= metadata["annotations"].items()
    assert charts.workload(objects)["spec"]["revisionHistoryLimit"] == 2
    assert charts.workload(objects)["spec"]["strategy"] == {"type": "Recreate"}
    probe = charts.container(objects)["startupProbe"]
    assert (probe["failureThreshold"], probe["periodSeconds"]) == (90, 2)
    assert probe["httpGet"]["path"] == "/healthz"


def test_every_service_has_the_ip_families() -> None:
    families = {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}
    found = charts.render(service=families, metrics={"serviceMonitor": {"enabled": True}})
    services = [one["spec"] for (kind, _), one in found.items() if kind == "Service"]
    assert len(services) == 3
    assert all(families.items() <= one.items() for one in services)


def test_a_service_monitor_is_as_the_values_say(
    objects: dict[tuple[str, str], Document],
) -> None:
    values = yaml.safe_load(EVERYTHING.read_text())["metrics"]["serviceMonitor"]
    monitor = objects["ServiceMonitor", "mesh-wasmer"]
    assert monitor["metadata"]["namespace"] == "team-a"
    assert values["annotations"].items() <= monitor["metadata"]["annotations"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    for name in ("scrapeTimeout", "relabelings", "metricRelabelings", "honorLabels"):
        assert endpoint[name] == values[name]
    assert values["endpointAdditionalProperties"].items() <= endpoint.items()


def test_a_minimum_of_replicas_replaces_the_maximum_that_a_disruption_may_stop(
    objects: dict[tuple[str, str], Document],
) -> None:
    spec = objects["PodDisruptionBudget", "mesh-wasmer"]["spec"]
    assert spec["minAvailable"] == 1
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert "maxUnavailable" not in spec
    assert charts.render()["PodDisruptionBudget", "wasmer"]["spec"]["maxUnavailable"] == 1


def test_the_test_downloads_from_the_service_that_sidecars_use(
    objects: dict[tuple[str, str], Document],
) -> None:
    job = objects["Job", "mesh-wasmer-download-test"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = build_parser().parse_args(container["args"])
    assert given.mode == "check-download"
    service = objects["Service", "mesh-wasmer"]
    (port,) = service["spec"]["ports"]
    assert given.url == f"http://mesh-wasmer.mesh-blue.svc.cluster.local:{port['port']}"
    left_out = charts.render(downloadTest={"enabled": False})
    assert not [name for _, name in left_out if "download" in name]


def test_further_objects_are_templates(objects: dict[tuple[str, str], Document]) -> None:
    assert objects["ConfigMap", "mesh-wasmer-extra"]["data"] == {"release": "release"}
    assert objects["ConfigMap", "as-text"]["metadata"]["namespace"] == "mesh-blue"


def test_artifact_hub_metadata_is_valid() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    annotations = copy.deepcopy(about["annotations"])
    icon = about["icon"].rpartition("/main/")[2]
    assert (ROOT / icon).is_file()
    (crd,) = yaml.safe_load(annotations["artifacthub.io/crds"])
    shipped = yaml.safe_load((CHART / "files/crd.yaml").read_text())
    assert crd["name"] == shipped["metadata"]["name"]
    assert crd["kind"] == shipped["spec"]["names"]["kind"]
    assert crd["version"] == shipped["spec"]["versions"][0]["name"]
    (example,) = yaml.safe_load(annotations["artifacthub.io/crdsExamples"])
    assert example["kind"] == crd["kind"]
    assert all(one["url"] for one in yaml.safe_load(annotations["artifacthub.io/links"]))
    assert {"home", "sources", "keywords", "maintainers"} <= about.keys()
