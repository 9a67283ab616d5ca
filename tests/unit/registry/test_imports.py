"""The cost of imports: `wasmc --help` must not import oras."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["credentials", "client"])
def test_oras_is_not_imported_before_it_is_used(module: str) -> None:
    program = (
        f"import sys, autowasm.registry.{module}\n"
        "heavy = {'oras', 'requests', 'jsonschema', 'aiohttp', 'kubernetes_asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_oras_brings_no_log_handler_of_its_own() -> None:
    program = (
        "import logging, autowasm.registry.transport\n"
        "names = ['oras', 'oras.logger']\n"
        "print([logging.getLogger(name).handlers for name in names])\n"
        "print(logging.getLogger('oras.logger').getEffectiveLevel())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["[[], []]", "30"]
