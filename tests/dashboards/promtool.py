"""Prometheus' own promtool: checks of rules and of what expressions give."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from tests.parts import provision

Sample = tuple[Mapping[str, str], float]
"""Labels and value."""


def promtool(*arguments: str | Path) -> str:
    """What it prints. Raises AssertionError if it fails."""
    done = subprocess.run([provision.promtool(), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_expression(
    expression: str, series: Mapping[str, str], expected: Sequence[Sample], folder: Path
) -> None:
    """What it gives after nine minutes of these series, one sample a minute. Raises AssertionError."""
    samples = [
        {"labels": "{" + ", ".join(f'{k}="{v}"' for k, v in labels.items()) + "}", "value": value}
        for labels, value in expected
    ]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": "9m", "exp_samples": samples}],
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", file)
