"""install.yaml against the code: numbers, names and flags that have to agree. No API server needed."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from autowasm.cli import wasmerflags
from autowasm.cli.wasmer import build_parser
from autowasm.limits import MIB
from autowasm.settings import EnvoyFetch, Settings
from autowasm.units import parse_size
from tests.manifests import documents
from tests.manifests.documents import ROOT, Document, installed
from tests.parts import provision

_ENVOY = EnvoyFetch()


def _pod() -> Document:
    result: Document = installed("Deployment")["spec"]["template"]["spec"]
    return result


def _container() -> Document:
    (container,) = _pod()["containers"]
    result: Document = container
    return result


def _settings() -> Settings:
    """The settings from the shipped arguments; there is no environment in the Deployment."""
    assert "env" not in _container()
    return wasmerflags.settings_from(
        build_parser().parse_args(_container()["args"]), environment={}
    )


def test_the_image_is_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert _container()["image"].rpartition(":")[2] == version


def test_the_arguments_start_the_controller_with_the_mounted_cache() -> None:
    settings = _settings()
    assert settings.standalone is None
    (mount,) = _container()["volumeMounts"]
    assert settings.cache_dir.as_posix() == mount["mountPath"]


def test_only_the_cache_can_be_written_and_it_holds_budget_and_staging() -> None:
    assert _container()["securityContext"]["readOnlyRootFilesystem"] is True
    (volume,) = _pod()["volumes"]
    settings = _settings()
    one_fetch = settings.limits.layer_bytes + settings.limits.module_bytes
    needed = settings.disk_budget + settings.fetch.total * one_fetch
    assert parse_size(volume["emptyDir"]["sizeLimit"]) > needed


def test_the_memory_limit_holds_wasmer_and_the_children_of_the_preflight() -> None:
    limits = _settings().preflight_limits
    assert limits.total == 2, "one of which may compile"
    children = limits.run_memory + max(limits.run_memory, limits.compile_memory)
    wasmer, fork_server = 160 * MIB, 40 * MIB  # docs/capacity.md
    rest = parse_size(_container()["resources"]["limits"]["memory"]) - children
    assert rest >= wasmer + fork_server + 48 * MIB  # of connections and of the page cache


def test_the_grace_period_covers_an_orderly_stop() -> None:
    settings = _settings()
    needed = settings.drain_delay + settings.serve.finish_sends
    assert _pod()["terminationGracePeriodSeconds"] >= needed + 5


def test_ports_and_probes_are_those_of_the_program() -> None:
    settings, container = _settings(), _container()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.listen == f"[::]:{ports['http-wasm']}"
    assert settings.admin_listen == f"[::]:{ports['http-admin']}"
    probes = {
        name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")
    }
    assert {probe["port"] for probe in probes.values()} == {"http-admin"}
    assert [probe["path"] for probe in probes.values()] == ["/healthz", "/readyz", "/healthz"]
    annotations = installed("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["http-admin"])


def test_the_service_is_the_one_in_every_envoyfilter() -> None:
    service = installed("Service", _ENVOY.service_name)
    assert service["metadata"]["namespace"] == _ENVOY.service_namespace
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["name"]) == (_ENVOY.service_port, "http-wasm")


def test_peers_find_each_other_before_they_are_ready() -> None:
    peers = installed("Service", "wasmer-peers")["spec"]
    assert peers["clusterIP"] == "None"
    assert peers["publishNotReadyAddresses"] is True
    assert peers["ports"] == installed("Service")["spec"]["ports"]


def test_selectors_select_the_pod_and_nothing_meshes_it() -> None:
    deployment = installed("Deployment")["spec"]
    metadata = deployment["template"]["metadata"]
    selectors = [
        installed("Service", name)["spec"]["selector"] for name in ("wasmer", "wasmer-peers")
    ]
    for selector in (*selectors, deployment["selector"]["matchLabels"]):
        assert selector.items() <= metadata["labels"].items()
    for place in ("labels", "annotations"):
        assert metadata[place]["sidecar.istio.io/inject"] == "false"


def test_an_update_never_leaves_fewer_replicas() -> None:
    spec = installed("Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    budget = installed("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] < spec["replicas"]
    assert budget["selector"] == spec["selector"]


def test_replicas_part_where_they_can() -> None:
    affinity = _pod()["affinity"]["podAntiAffinity"]
    assert set(affinity) == {"preferredDuringSchedulingIgnoredDuringExecution"}
    labels = installed("Deployment")["spec"]["selector"]
    for term in affinity["preferredDuringSchedulingIgnoredDuringExecution"]:
        assert term["podAffinityTerm"]["labelSelector"] == labels


def test_the_lease_is_the_only_one_that_can_be_changed() -> None:
    cluster = _settings().cluster
    assert cluster is not None
    assert cluster.election.enabled
    create, change = installed("Role", "wasmer-leader-election")["rules"]
    assert (create["verbs"], change["verbs"]) == (["create"], ["get", "update"])
    assert change["resourceNames"] == [cluster.election.lease_name]


def test_only_its_own_service_may_be_looked_at() -> None:
    (look,) = installed("Role", "wasmer-service")["rules"]
    assert (look["verbs"], look["resourceNames"]) == (["get"], [_settings().envoy.service_name])


@pytest.mark.parametrize(
    ("overlay", "name", "namespace"),
    [
        ({}, "wasmer", "istio-system"),
        ({"namespace": "mesh-blue"}, "wasmer", "mesh-blue"),
        ({"namespace": "mesh-blue", "namePrefix": "blue-"}, "blue-wasmer", "mesh-blue"),
        ({"nameSuffix": "-2"}, "wasmer-2", "istio-system"),
    ],
)
def test_kustomize_renames_the_objects_and_their_names_in_the_arguments(
    overlay: Document, name: str, namespace: str, tmp_path: Path
) -> None:
    shutil.copytree(documents.MANIFESTS, tmp_path / "base")
    (tmp_path / "overlay").mkdir()
    text = yaml.safe_dump({**overlay, "resources": ["../base"]})
    (tmp_path / "overlay/kustomization.yaml").write_text(text)
    command = [provision.kubectl(), "kustomize", tmp_path / "overlay"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    made = [one for one in yaml.safe_load_all(said) if one]
    objects = {(one["kind"], one["metadata"]["name"]): one for one in made}
    assert len(objects) == len(made)
    pod = objects["Deployment", name]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    # As the Pod sees it: wasmer reads its own namespace from the volume of its ServiceAccount.
    environment = {one["name"]: one["value"] for one in container["env"]}
    arguments = [*container["args"], f"--service-namespace={namespace}"]
    settings = wasmerflags.settings_from(
        build_parser().parse_args(arguments), environment=environment
    )
    service = objects["Service", settings.envoy.service_name]
    assert (service["metadata"]["name"], service["metadata"]["namespace"]) == (name, namespace)
    assert ("Service", settings.peers.host.partition(".")[0]) in objects
    assert settings.cluster is not None
    roles = {one: objects["Role", one] for kind, one in objects if kind == "Role"}
    named = [r["resourceNames"] for one in roles.values() for r in one["rules"][-1:]]
    assert named == [[settings.cluster.election.lease_name], [settings.envoy.service_name]]
    binding = objects["ClusterRoleBinding", name]
    assert binding["roleRef"]["name"] == name
    subject = {"kind": "ServiceAccount", "name": pod["serviceAccountName"], "namespace": namespace}
    assert binding["subjects"] == [subject]


def test_everything_is_in_istios_namespace_and_labelled() -> None:
    for document in documents.documents(documents.INSTALL):
        assert document["metadata"]["labels"]["app.kubernetes.io/part-of"] == "autowasm"
        if not document["kind"].startswith("ClusterRole"):
            assert document["metadata"]["namespace"] == "istio-system"
