"""The library's parts are imported without its models, and other importers are not affected."""

import subprocess
import sys

SCRIPT = """
import sys
from autowasm.performance import libraryimport
parts = libraryimport.load()
assert parts is libraryimport.load()
assert not [name for name in sys.modules if name.startswith("kubernetes_asyncio")]
assert parts.kube_config.Configuration is parts.incluster_config.Configuration is parts.new_configuration
assert callable(parts.kube_config.load_kube_config) and callable(parts.rest.RESTClientObject)
from kubernetes_asyncio import client, config
assert client.CoreV1Api and client.V1Pod and config.load_kube_config
assert sys.modules["kubernetes_asyncio.client"] is client
"""
AFTERWARDS = """
import sys
import kubernetes_asyncio.client as before
from autowasm.performance import libraryimport
libraryimport.load()
assert sys.modules["kubernetes_asyncio.client"] is before
import kubernetes_asyncio.config
assert before.V1Pod and kubernetes_asyncio.client is before
"""


def run(script: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=90)


def test_leaves_the_models_out_and_the_library_whole_for_others() -> None:
    run(SCRIPT)


def test_leaves_a_library_that_was_imported_before_as_it_was() -> None:
    run(AFTERWARDS)
