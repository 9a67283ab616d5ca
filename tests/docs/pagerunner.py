"""Runs a page to the letter: its blocks in their order, each by its language."""

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from autowasm.controller.sourcepolicy import SourcePolicy
from tests.docs import blocks
from tests.docs.blocks import Block
from tests.docs.selection import KUSTOMIZATION_KEYS, MESH_CONFIG_KEYS, NOT_RUN
from tests.docs.shell import Shell, commands, matches

LANGUAGES = {"sh", "console", "yaml", "json", "text", "promql"}
"""`text` is what a program says or a picture, `promql` is for tests/dashboards."""
_VALUES = Path("manifests/helm/wasmer/values.yaml")


def is_run(block: Block) -> bool:
    """Whether a test runs its commands."""
    return not block.first.startswith(tuple(NOT_RUN))


async def run(page: str, terminal: Shell) -> None:
    """Do what it says. Raises AssertionError with the place."""
    for block in blocks.read(page):
        if block.title:
            terminal.write(block)
        if block.language == "sh" and is_run(block):
            said = await terminal.run(block.text)
            where = f"{block}: {block.text}ends with {said.status}:\n{said.text}"
            assert said.status == 0, where + _logs(terminal)
        elif block.language == "console" and is_run(block):
            await _converse(block, terminal)
        elif block.language == "yaml":
            await check_yaml(block, terminal)


async def _converse(block: Block, terminal: Shell) -> None:
    for command, expected in commands(block):
        said = await terminal.run(command, strict=False)
        where = f"{block}: $ {command}ends with {said.status}:\n{said.text}"
        assert said.status == 0, where + _logs(terminal)
        expected = terminal.replaced(expected)
        assert matches(expected, said.text), f"{where}\nwhere the page has:\n{expected}"


def _logs(terminal: Shell) -> str:
    found = sorted(Path(terminal.directory).glob("*.log"))
    return "".join(f"\n{file.name}: {file.read_text(errors='replace')[-2000:]}" for file in found)


async def check_yaml(block: Block, terminal: Shell) -> None:
    """Whatever will read it takes it: the API server, the chart, wasmer's policy. Envoy's own are read when they are used."""
    documents = list(yaml.safe_load_all(terminal.replaced(block.text)))
    keys = set(documents[0])
    file = terminal.directory / ".block.yaml"
    file.write_text(terminal.replaced(block.text))
    if "KUBECONFIG" not in terminal.environment:
        assert block.title, f"{block}: nobody reads it"
        return
    if "apiVersion" in keys:
        script = f"kubectl apply --dry-run=server --validate=strict -f {file}"
    elif keys == {"namespaces"}:
        SourcePolicy.parse(block.text.encode())
        return
    elif keys <= MESH_CONFIG_KEYS:
        return
    elif "resources" in keys and keys <= KUSTOMIZATION_KEYS:
        await _check_kustomization(block, documents[0], terminal)
        return
    else:
        known = set(yaml.safe_load((blocks.ROOT / _VALUES).read_text()))
        assert keys <= known, f"{block}: neither an object, nor values of the chart, nor a policy"
        script = (
            f"helm template wasmer manifests/helm/wasmer -f {shlex.quote(str(file))} >/dev/null"
        )
    said = await terminal.run(script)
    assert said.status == 0, f"{block}: {said.text}"


async def _check_kustomization(
    block: Block, kustomization: Mapping[str, Any], terminal: Shell
) -> None:
    """kustomize takes it over the manifests of the checkout."""
    directory = terminal.directory / ".kustomize"
    shutil.copytree(blocks.ROOT / "manifests", directory / "base", dirs_exist_ok=True)
    overlay = directory / "overlay"
    overlay.mkdir(exist_ok=True)
    text = yaml.safe_dump({**kustomization, "resources": ["../base"]})
    (overlay / "kustomization.yaml").write_text(text)
    said = await terminal.run(f"kubectl kustomize {shlex.quote(str(overlay))}")
    assert said.status == 0, f"{block}: {said.text}"


def problems(page: str) -> list[str]:
    """Blocks that nothing would look at."""
    found = []
    for block in blocks.read(page):
        if block.language not in LANGUAGES:
            found.append(f"{block}: {block.language} is neither run nor marked as output (text)")
        if block.language == "json":
            json.loads(block.text)
    return found
