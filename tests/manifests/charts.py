"""The chart, rendered by the real helm.

Not an installation. Invariant: `render` needs no API server and leaves no trace.
"""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.manifests.documents import Document
from tests.parts import provision, releases
from tools.generate.paths import CHART

VALUES = sorted((CHART / "ci").glob("*-values.yaml"))


class Refused(Exception):
    """helm did not render it; the message is helm's."""


def render(
    values: Path | None = None,
    *,
    chart: Path = CHART,
    kube_version: str = releases.KUBERNETES.version,
    **settings: Any,
) -> dict[tuple[str, str], Document]:
    """The objects by kind and name. `settings` are top-level values over those of the file. Raises Refused.

    `kube_version` is the API server's.
    """
    command: list[str | Path] = [provision.helm(), "template", "release", chart]
    command += ["--kube-version", kube_version]
    if values is not None:
        command += ["--values", values]
    text = yaml.dump(settings, Dumper=yaml.CSafeDumper).encode()
    done = subprocess.run([*command, "--values", "-"], input=text, capture_output=True)
    if done.returncode:
        raise Refused(done.stderr.decode())
    documents = yaml.load_all(done.stdout, Loader=yaml.CSafeLoader)
    found = [document for document in documents if document]
    keys = [
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in found
    ]
    assert len(set(keys)) == len(keys), "one object twice"
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def workload(objects: dict[tuple[str, str], Document]) -> Document:
    """The Deployment or StatefulSet."""
    (found,) = [one for (kind, _), one in objects.items() if kind in {"Deployment", "StatefulSet"}]
    return found


def container(objects: dict[tuple[str, str], Document]) -> Document:
    """wasmer's own."""
    return _own(workload(objects))


def image(workload: Document) -> str:
    """The image of wasmer in a Deployment or StatefulSet."""
    found: str = _own(workload)["image"]
    return found


def arguments(workload: Document) -> list[str]:
    """The flags of wasmer in a Deployment or StatefulSet."""
    found: list[str] = _own(workload)["args"]
    return found


def _own(workload: Document) -> Document:
    containers = workload["spec"]["template"]["spec"]["containers"]
    (found,) = [one for one in containers if one["name"] == "wasmer"]
    result: Document = found
    return result
