"""The addresses of the alerts' runbooks: a page of the site, with a section for each alert.

The address of the site is that of pyproject.toml.
"""

import tomllib
from typing import Final

from tools.generate.paths import ROOT

SITE: Final[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"][
    "Documentation"
]
RUNBOOK: Final = f"{SITE}operations.html"
"""The chart replaces it in the rules with the value `prometheusRule.runbook`, and has it as the default."""


def address(alert: str, page: str = RUNBOOK) -> str:
    """The address of the alert's section."""
    return f"{page}#{alert.lower()}"
