"""The page of supported versions says what is run: its table against `releases.COMBINATIONS`, and those against the pins."""

import re

import pytest

from autowasm.envoyversion import OLDEST_ENVOY
from tests.docs.blocks import ROOT
from tests.parts import golang, pypi, releases
from tools.generate.paths import CHART

PAGE = ROOT / "docs/compatibility.md"
_ROW = re.compile(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (.+) \|$", re.MULTILINE)
# Istio publishes no module versions: the commits of the releases. The newest is of the development line.
_ISTIO_COMMITS = {"1.8.0": "c87a4c874df2"}


def test_the_table_has_exactly_the_combinations_that_are_run() -> None:
    rows = _ROW.findall(PAGE.read_text())
    run = [(one.kubernetes.version, one.istio.version, one.envoy) for one in releases.COMBINATIONS]
    assert [row[:3] for row in rows] == run
    assert all("make versions" in row[3] for row in rows)


def test_the_promise_is_that_of_the_oldest_that_are_run() -> None:
    oldest = min(
        (one.kubernetes for one in releases.COMBINATIONS), key=lambda one: _numbers(one.version)
    )
    mesh = min((one.istio for one in releases.COMBINATIONS), key=lambda one: _numbers(one.version))
    envoy = min((one.envoy for one in releases.COMBINATIONS), key=_numbers)
    promise = (
        f"Kubernetes {_minor(oldest.version)} or newer, Istio {_minor(mesh.version)} or newer, "
        f"and sidecars with Envoy {_minor(envoy)} or newer"
    )
    for page in (PAGE, ROOT / "README.md"):
        assert promise in " ".join(page.read_text().split()), page
    assert str(OLDEST_ENVOY) == _minor(envoy)
    chart = (CHART / "Chart.yaml").read_text()
    assert f'kubeVersion: ">={_minor(oldest.version)}.0-0"' in chart


@pytest.mark.parametrize(
    "release", [releases.KUBERNETES, releases.OLDEST_KUBERNETES], ids=lambda one: one.version
)
def test_kubernetes_is_of_the_module_that_is_pinned(release: releases.Kubernetes) -> None:
    group = golang.GROUPS[release.group]
    text = (group.folder / "go.mod").read_text()
    assert re.search(rf"k8s\.io/kubernetes v{re.escape(release.version)}\b", text)
    assert f"gitVersion=v{release.version}" in group.ldflags


def test_the_oldest_istio_is_of_the_commit_that_is_pinned() -> None:
    release = releases.OLDEST_ISTIO
    text = (golang.GROUPS[release.group].folder / "go.mod").read_text()
    assert re.search(rf"istio\.io/istio v0\.0\.0-\d+-{_ISTIO_COMMITS[release.version]}\b", text)


def test_envoys_that_are_named_are_the_pinned_ones() -> None:
    text = PAGE.read_text()
    others = set(pypi.ENVOY_VERSIONS) - {one.envoy for one in releases.COMBINATIONS}
    assert [one for one in others if f"Envoy {one}" not in text] == []


@pytest.mark.parametrize(
    ("name", "module", "group"),
    [
        ("Helm", "helm.sh/helm/v3", "tools"),
        ("Helm", "helm.sh/helm/v4", "gitops"),
        ("distribution (`registry`)", "github.com/distribution/distribution/v3", "registry"),
        ("`crane registry serve`", "github.com/google/go-containerregistry", "tools"),
        ("kstatus of Flux' `cli-utils`", "github.com/fluxcd/cli-utils", "gitops"),
    ],
)
def test_other_programs_are_of_the_modules_that_are_pinned(
    name: str, module: str, group: str
) -> None:
    text = (ROOT / "tests/assets" / group / "go.mod").read_text()
    found = re.search(rf"{re.escape(module)} v([\d.]+)", text)
    assert found
    assert f"| {name} | {found[1]} |" in PAGE.read_text()


def test_prometheus_and_kubectl_are_of_the_releases_that_are_pinned() -> None:
    text = (ROOT / "tests/assets/tools/go.mod").read_text()
    # The module of Prometheus 3.15.0 is v0.315.0.
    found = re.search(r"github\.com/prometheus/prometheus v0\.(\d)(\d\d)\.(\d+)", text)
    assert found
    major, minor, patch = map(int, found.groups())
    assert f"| Prometheus | {major}.{minor}.{patch} |" in PAGE.read_text()
    assert f"| kubectl | {pypi.KUBECTL.version} |" in PAGE.read_text()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
