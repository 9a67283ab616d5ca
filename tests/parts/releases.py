"""The releases of Kubernetes, Istio and Envoy that tests run, their differences, and their combinations.

The programs of these releases are available from the package registries. docs/compatibility.md publishes the table; a test
compares it with `COMBINATIONS`. Invariant: a release's version is that of the module that its group pins.
"""

from dataclasses import dataclass

from tests.parts import pypi


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """A release of kube-apiserver and kube-controller-manager. etcd is the newest release's for all: its API is the same."""

    version: str
    group: str = "kubernetes"
    """In `golang.GROUPS`."""
    api_flags: tuple[str, ...] = ()
    controller_manager_flags: tuple[str, ...] = ()
    apply_flags: tuple[str, ...] = ()
    """Flags of `kubectl apply` for our manifests (docs/install.md)."""


@dataclass(frozen=True, slots=True)
class Istio:
    """A release of istiod. `version` is the one that a proxy reports to istiod."""

    version: str
    group: str = "istio"
    """In `golang.GROUPS`."""
    crds: str = "manifests/charts/base/files/crd-all.gen.yaml"
    """The path in the source folder of Istio."""
    bootstrap: str = "tools/packaging/common/envoy_bootstrap.json"
    """The same."""
    own_filters: tuple[str, ...] = ()
    """HTTP filters of Istio's own build of Envoy that no feature flag leaves out: upstream's Envoy refuses listeners with them."""

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the source folder that tests read."""
        return (self.crds, self.bootstrap)


@dataclass(frozen=True, slots=True)
class Combination:
    """Releases that run together."""

    kubernetes: Kubernetes
    istio: Istio
    envoy: str

    def __str__(self) -> str:
        return f"kubernetes-{self.kubernetes.version}-istio-{self.istio.version}-envoy-{self.envoy}"


KUBERNETES = Kubernetes(
    "1.36.3",
    # Otherwise its shutdown waits a minute for open watches.
    api_flags=("--shutdown-watch-termination-grace-period=0s",),
)
OLDEST_KUBERNETES = Kubernetes(
    "1.16.15",
    group="kubernetes-1.16",
    # Until 1.23 both also served plain text, on fixed ports.
    api_flags=("--insecure-port=0",),
    controller_manager_flags=("--port=0",),
    # A schema has no field x-kubernetes-validations before 1.23, and a Pod no field seccompProfile before 1.19.
    apply_flags=("--validate=false",),
)

ISTIO = Istio("1.31.0")
OLDEST_ISTIO = Istio(
    "1.8.0",
    group="istio-1.8",
    crds="manifests/charts/base/crds/crd-all.gen.yaml",
    own_filters=("istio_authn", "istio.alpn"),
)

ENVOY = pypi.ENVOY_VERSIONS[0]
OLDEST_ENVOY = pypi.OLDEST_ENVOY

NEWEST = Combination(KUBERNETES, ISTIO, ENVOY)
COMBINATIONS = (
    NEWEST,
    Combination(KUBERNETES, ISTIO, OLDEST_ENVOY),
    Combination(OLDEST_KUBERNETES, OLDEST_ISTIO, OLDEST_ENVOY),
    Combination(OLDEST_KUBERNETES, OLDEST_ISTIO, ENVOY),
)
