"""`python -m tools.generate.manifests`: write the parts that the chart and the plain manifests share.

The chart (manifests/helm/wasmer) is written by hand, except for these files: its copies of crd.yaml and of
dashboards and rules (helm reads no file outside of a chart), the schema of `config`, which is the table of flags,
and its README with the descriptions in the schema (`chart.py`). install.yaml is the chart with its default values,
without the parts that only helm needs.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autowasm.cli import wasmerflags
from autowasm.cli.options import Option
from autowasm.settings import PreflightMode
from tests.parts import provision
from tools.generate import chart
from tools.generate.paths import BOARD, CHART, MANIFESTS, RULES

SCHEMA = CHART / "values.schema.json"
INSTALL = MANIFESTS / "install.yaml"

ELSEWHERE: Mapping[str, str] = {
    "kubeconfig": "a Pod has its ServiceAccount's",
    "cache_dir": "cache",
    "listen": "service.port",
    "admin_listen": "metrics.port",
    "service_name": "name",
    "service_namespace": "namespace",
    "service_port": "service.port",
    "cluster_domain": "clusterDomain",
    "root_namespace": "rootNamespace",
    "lease_name": "name",
    "peers_service": "name",
    "policy_file": "policy",
    "registry_ca_file": "registryCa",
}
"""Flags that are not in `config`, and the value that they follow from."""

_CHOICES = {
    "log_level": ["debug", "info", "warning", "error"],
    "log_format": ["json", "console", "auto"],
    "preflight": [mode.value for mode in PreflightMode],  # false is refused: YAML reads off so
}
_PATTERNS = {
    "DURATION": r"^(0|([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+)$",
    "VERSION": r"^v?[0-9]+\.[0-9]+(\.[0-9]+)?$",  # a number is refused: YAML reads 1.40 as 1.4
    "SIZE": r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|K|M|G|T)?B?$",
}
_HEADER = """\
# wasmer in istio-system, two replicas: one leads, both serve. Apply crd.yaml first, then this file; for an upgrade both again.
#
# The image is not published yet: build it with the Dockerfile, push it to your own registry, and put its name below. The
# namespace is Istio's and must exist. This file is the Helm chart (helm/wasmer) with its default values, written by
# `make manifests`. Istio's dashboards and telemetry use the label `app`.
"""
_OF_HELM = r"^ +(helm\.sh/chart|app\.kubernetes\.io/(managed-by|instance)): .*\n"


def options() -> dict[str, Option]:
    """The flags of `wasmer controller` by name."""
    return {
        option.name: option
        for group in wasmerflags.MODES["controller"].values()
        for option in group
    }


def camel(name: str) -> str:
    """`log_level` as the chart writes it: `logLevel`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def config_schema() -> dict[str, Any]:
    """The schema of `config`."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            camel(name): {**_type(option), "description": f"{option.flag}: {option.help}"}
            for name, option in options().items()
            if name not in ELSEWHERE
        },
    }


_COMMAS = {"allow_import"}
"""Flags that take several values with commas between them, so that their value may be one text as well."""


def _type(option: Option) -> dict[str, Any]:
    if option.switch:
        return {"type": ["boolean", "null"]}
    if option.repeatable:
        kinds = ["array", "string", "null"] if option.name in _COMMAS else ["array", "null"]
        return {"type": kinds, "items": {"type": "string", "minLength": 1}}
    if option.name in _CHOICES:
        return {"enum": [*_CHOICES[option.name], None]}
    if option.metavar == "N":
        return {"type": ["integer", "null"], "minimum": 0}
    if option.metavar in _PATTERNS:
        return {"type": ["string", "null"], "pattern": _PATTERNS[option.metavar]}
    return {"type": ["string", "null"], "minLength": 1}


def schema() -> str:
    """values.schema.json with the flags as the code has them."""
    document = json.loads(SCHEMA.read_text())
    document["properties"]["config"] = config_schema()
    chart.describe(document)
    return json.dumps(document, indent=2) + "\n"


def copies() -> dict[Path, Path]:
    """Each copied file of the chart, and its original."""
    files = CHART / "files"
    return {
        files / "crd.yaml": MANIFESTS / "crd.yaml",
        files / RULES.name: RULES,
        files / "dashboards" / BOARD.name: BOARD,
    }


def install() -> str:
    """install.yaml. Blocks: helm renders it."""
    command: list[str | Path] = [provision.helm(), "template", "wasmer", CHART]
    command += ["--set", "crd.install=false,uninstallCheck.enabled=false", "--skip-tests"]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    rendered = re.sub(r"^# Source: .*\n", "", rendered, flags=re.MULTILINE)
    rendered = re.sub(_OF_HELM, "", rendered, flags=re.MULTILINE)
    # A comment stays with its object, which helm may move; empty lines come from conditions.
    rendered = re.sub(r"\n\s*\n", "\n", rendered)
    return _HEADER + rendered


def main() -> None:
    """Write all files."""
    SCHEMA.write_text(schema())
    chart.README.write_text(chart.readme())
    shutil.rmtree(CHART / "files")
    for target, source in copies().items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    INSTALL.write_text(install())


if __name__ == "__main__":
    main()
