"""The files and folders that generators write."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
BOARD: Final = ROOT / "dashboards/wasmer.json"
RULES: Final = ROOT / "dashboards/prometheus-rules.yaml"
MANIFESTS: Final = ROOT / "manifests"
CHART: Final = MANIFESTS / "helm/wasmer"
