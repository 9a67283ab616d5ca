"""Replicas render the same bytes for any hash seed of the interpreter: otherwise each would undo the writes of the other.

Each seed is a process: the tests that run several replicas fork them, with one seed, from one process.
"""

import os
import subprocess
import sys
from pathlib import Path

_RENDER = """
import json, sys
from autowasm.api import validation
from autowasm.api.envoyfilter import render
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import document, record

many = [document(
    name=f"n{number}",
    spec={"selector": {"matchLabels": {f"k{label}": "v" for label in range(9)}}},
    env=[{"name": f"E{name}", "value": "x"} for name in range(9)],
    applyPorts=[9000 + port for port in range(9)],
    pluginConfig={f"c{key}": {"a": 1, "b": [True, None]} for key in range(9)},
) for number in range(3)]
print(json.dumps([render(validation.parse(each), record(), EnvoyFetch()) for each in many]))
"""


def rendered(seed: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _RENDER],
        env={
            **os.environ,
            "PYTHONHASHSEED": str(seed),
            "PYTHONPATH": str(Path(__file__).parents[3]),
        },
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout


def test_every_hash_seed_renders_the_same_bytes() -> None:
    first, *others = [rendered(seed) for seed in (1, 2, 3)]
    assert "envoy.wasm" in first
    assert [other == first for other in others] == [True, True]
