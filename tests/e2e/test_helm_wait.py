"""`helm install --wait` of a chart with an AutoWasm: Helm 4 waits until it is ready, and stops waiting once it has failed."""

import asyncio
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from tests.parts import clients, wat
from tests.parts.clients import Client
from tests.parts.installation import Document, Installation

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

PATIENT = ("--wait", "--timeout=10m")
"""Longer than the timeout of a test, so Helm must end for another reason."""


@pytest_asyncio.fixture(loop_scope="session")
async def helm(installation: Installation, tmp_path: Path) -> Client:
    """Helm 4 as the administrator."""
    return await clients.helm_4(tmp_path, kubeconfig=installation.cluster.kubeconfig)


def _chart(directory: Path, document: Document) -> Path:
    """A chart with this object."""
    chart = directory / "chart"
    (chart / "templates").mkdir(parents=True)
    about = {"apiVersion": "v2", "name": "filters", "version": "1.0.0"}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about))
    (chart / "templates/autowasm.yaml").write_text(yaml.safe_dump(document))
    return chart


async def _refusal(helm: Client, *arguments: str | Path) -> str:
    """Helm's output when it fails."""
    done = await helm.run(*arguments, check=False, timeout=120)
    assert done.returncode == 1, done
    return done.stderr


async def test_a_module_that_can_be_had_is_waited_for(
    installation: Installation, namespace: str, helm: Client, tmp_path: Path
) -> None:
    image = await installation.push("helm", wat.header_filter("helm"))
    chart = _chart(tmp_path, installation.autowasm(image, namespace=namespace))
    await installation.registry.process.stop()  # the fixture `installation` starts it again
    install = asyncio.create_task(
        helm.run("install", "good", chart, "--namespace", namespace, *PATIENT, timeout=120)
    )
    try:
        found = await installation.wait_phase("Failed", namespace=namespace)
        kinds = {one["type"]: one["reason"] for one in found["status"]["conditions"]}
        assert kinds["Reconciling"] == kinds["Ready"] == "RegistryUnavailable"
        assert not install.done(), "what wasmer retries is no failure"
        await installation.registry.start()
        await install
    finally:
        install.cancel()
    assert (await installation.get(namespace=namespace))["status"]["phase"] == "Synced"


@pytest.mark.parametrize("case", ["missing image", "no module"])
async def test_helm_wait_fails_at_once_with_the_message_of_the_status(
    case: str, installation: Installation, namespace: str, helm: Client, tmp_path: Path
) -> None:
    if case == "missing image":
        image = f"{installation.registry.host}/xxx/hello:absent"
    else:
        image = await installation.push("not-wasm", b"#!/bin/sh\n", force=True)
    chart = _chart(tmp_path, installation.autowasm(image, namespace=namespace))
    said = await _refusal(helm, "install", "bad", chart, "--namespace", namespace, *PATIENT)
    status = (await installation.get(namespace=namespace))["status"]
    reason = {"missing image": "ImageNotFound", "no module": "NotWasm"}[case]
    assert {one["type"]: one["reason"] for one in status["conditions"]}["Stalled"] == reason
    assert "status: Failed" in said
    assert status["message"] in said


async def test_an_object_that_wasmer_has_not_seen_is_not_ready(
    installation: Installation, namespace: str, helm: Client, tmp_path: Path
) -> None:
    image = f"{installation.registry.host}/xxx/hello:any"
    chart = _chart(tmp_path, installation.autowasm(image, namespace=namespace))
    installation.may_die = True
    await installation.wasmer.process.stop()  # the fixture `installation` starts it again
    arguments = ("--namespace", namespace, "--wait", "--timeout=10s")
    said = await _refusal(helm, "install", "early", chart, *arguments)
    assert "generation is 1, but latest observed generation is -1" in said
