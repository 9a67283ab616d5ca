"""How often wasmer reconciles a new AutoWasm on a real API server: once for each thing that it waits for, never for its own writes."""

import asyncio

import pytest

from tests.parts import wat, wire
from tests.parts.installation import Document, Installation, envoyfilters

pytestmark = pytest.mark.asyncio(loop_scope="session")

OBJECTS = 12


async def _metric(installation: Installation, name: str) -> float:
    text = (await wire.get(f"http://{installation.wasmer.admin}/metrics")).body.decode()
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


async def _idle(installation: Installation) -> None:
    """Return when no key is queued or scheduled."""

    async def found() -> Document | None:
        names = ("autowasm_workqueue_depth", "autowasm_workqueue_delayed")
        return None if any([await _metric(installation, one) for one in names]) else {}

    await installation.wait_until(found, timeout=30)


async def test_new_autowasm_is_reconciled_at_its_creation_and_after_its_fetch(
    installation: Installation, namespace: str
) -> None:
    """The module was started with this configuration before, so the verdict is known."""
    image = await installation.push("v1", wat.header_filter("reconciles"))
    await installation.apply(installation.autowasm(image, name="first", namespace=namespace))
    await installation.wait_phase("Synced", name="first", namespace=namespace)
    await _idle(installation)
    before = await _metric(installation, "autowasm_workqueue_adds_total")
    for number in range(OBJECTS):
        name = f"f{number}"
        await installation.apply(installation.autowasm(image, name=name, namespace=namespace))
        await installation.wait_phase("Synced", name=name, namespace=namespace)
    await asyncio.sleep(2)  # the Secrets are read again within a second, by a search for due checks
    await _idle(installation)
    added = await _metric(installation, "autowasm_workqueue_adds_total") - before
    # Twice each. On a slow machine, a fetch of more than a second adds one, because its phase becomes visible.
    assert added <= 2.5 * OBJECTS
    assert added >= 2 * OBJECTS


async def test_changes_of_another_client_are_still_reconciled(
    installation: Installation, namespace: str
) -> None:
    """Also those that arrive right after wasmer's own write."""
    image = await installation.push("v1", wat.header_filter("reconciles"))
    path = envoyfilters(namespace, "test")
    patch = {"spec": {"workloadSelector": {"labels": {"app": "another"}}}}
    await installation.apply(installation.autowasm(image, namespace=namespace))
    await installation.wait_envoyfilter(namespace=namespace)
    await installation.cluster.request("PATCH", path, body=patch)

    def reverted(found: Document | None) -> bool:
        labels = ((found or {}).get("spec") or {}).get("workloadSelector", {}).get("labels", {})
        return found is not None and labels.get("app") != "another"

    await installation.wait_object(path, reverted)
    await installation.wait_phase("Synced", namespace=namespace)
