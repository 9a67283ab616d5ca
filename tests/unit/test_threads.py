"""Concurrent use of our libraries by several threads."""

import ast
import gc
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import autowasm

_SOURCES: Final = Path(autowasm.__file__).parent

_TOGETHER: Final = """
import sys, threading
sys.setswitchinterval(1e-6)
from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.registry.manifest import parse_manifest

digest = "sha256:" + 64 * "a"
layer = '{"mediaType": "m", "digest": "%s", "size": 1}' % digest
image = ('{"schemaVersion": 2, "config": %s, "layers": [%s]}' % (layer, layer)).encode()
index = ('{"schemaVersion": 2, "manifests": [%s]}' % layer).encode()
together = threading.Barrier(8)

def parse():
    together.wait()
    parse_manifest(image, None, limits=Limits())
    parse_manifest(index, None, limits=Limits())

threads = [threading.Thread(target=parse) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_first_manifests_of_a_process_can_be_parsed_by_several_threads_together() -> None:
    # With decoding by type, two of three of these processes were a segmentation fault.
    for _ in range(8):
        done = subprocess.run([sys.executable, "-c", _TOGETHER], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=str(file.relative_to(_SOURCES)))
        for file in sorted(_SOURCES.rglob("*.py"))
        # A command with one thread that reads Kubernetes objects.
        if "msgspec" in file.read_text() and file.parent.name != "explain"
    ],
)
def test_types_are_made_known_to_msgspec_on_import(file: Path) -> None:
    """Not at first use, which may be in two threads: a decoder at the top of the module, or its `.type`."""
    for call in (node for node in ast.walk(_parsed(file)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        if not name.startswith("msgspec.") or not name.endswith((".decode", ".convert")):
            continue
        kinds = [keyword.value for keyword in call.keywords if keyword.arg == "type"]
        kinds += call.args[1:2]
        for kind in kinds:
            assert ast.unparse(kind).endswith(".type"), ast.unparse(call)


def _parsed(file: Path) -> ast.Module:
    # Before 3.11.8, Python miscounts its depth when the collector runs inside ast.parse (python/cpython#106905).
    gc.disable()
    try:
        return ast.parse(file.read_text())
    finally:
        gc.enable()
