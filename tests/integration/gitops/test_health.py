"""What GitOps tools make of an AutoWasm with each reason: kstatus (Helm, Flux), Flux' expressions, and Argo CD's script.

The objects are those that the reconciler leaves, so the test holds the table in `reasons.py` against the tools' own code.
"""

import asyncio
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import lupa.lua51
import pytest
import yaml

from autowasm.controller import reconciler
from autowasm.reasons import Progress, Reason
from tests.manifests.documents import MANIFESTS
from tests.parts.kstatus import Health, compute
from tests.unit.controller.reconciling.recorded import OF_READY, Document, recorded

pytestmark = pytest.mark.timeout(1800)

FLUX = MANIFESTS / "flux/kustomization.yaml"
ARGO = MANIFESTS / "argocd/health.lua"
KSTATUS: Final = {
    Progress.DONE: "Current",
    Progress.RECONCILING: "InProgress",
    Progress.STALLED: "Failed",
}
IN_ARGO: Final = {"Current": "Healthy", "InProgress": "Progressing", "Failed": "Degraded"}
SUSPENDED: Final = Reason.ROLLOUT_PAUSED
"""Argo CD has a word of its own for what waits for a person's command; kstatus has not."""

_PROMISED: Final = {
    "Current": [Reason.SYNCED],
    "InProgress": [
        *(Reason.FETCHING, Reason.REGISTRY_UNAVAILABLE, Reason.TIMEOUT, Reason.BACKING_OFF),
        *(Reason.SECRET_NOT_FOUND, Reason.ENVOY_FILTER_REFUSED, Reason.SERVICE_NOT_FOUND),
        *(Reason.STORAGE_FULL, Reason.DIGEST_MISMATCH, Reason.INTERNAL_ERROR),
    ],
    "Failed": [
        *(Reason.INVALID_SPEC, Reason.POLICY_DENIED, Reason.ADDRESS_NOT_ALLOWED),
        *(Reason.IMAGE_NOT_FOUND, Reason.UNAUTHORIZED, Reason.NOT_WASM, Reason.SHA256_MISMATCH),
        *(Reason.CONFIGURATION_REFUSED, Reason.START_FAILED, Reason.ENVOY_FILTER_CONFLICT),
    ],
}
"""Independent of the table in `reasons.py`."""


async def _all_recorded(directory: Path, *, in_place: bool) -> dict[Reason, Document]:
    limit = asyncio.Semaphore(8)

    async def one(reason: Reason) -> Document:
        async with limit:
            return await recorded(directory / reason.name, reason, in_place=in_place)

    objects = await asyncio.gather(*map(one, OF_READY))
    return dict(zip(OF_READY, objects, strict=True))


@pytest.fixture(autouse=True)
def _fetching_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "FETCHING_SHOWN_AFTER", 0.0)


_recorded: dict[bool, dict[Reason, Document]] = {}
"""The results of `_all_recorded`, by `in_place`."""


@pytest.fixture(params=[False, True], ids=["nothing-published", "module-in-place"])
async def objects(request: pytest.FixtureRequest, tmp_path: Path) -> dict[Reason, Document]:
    """For each reason, the object."""
    if request.param not in _recorded:
        _recorded[request.param] = await _all_recorded(tmp_path, in_place=request.param)
    return copy.deepcopy(_recorded[request.param])


def _message(document: Document, kind: str) -> str:
    (found,) = [one for one in document["status"]["conditions"] if one["type"] == kind]
    return str(found["message"])


def _in_argo(document: Mapping[str, Any]) -> Health:
    """As Argo CD runs it: Lua 5.1, the object in the global `obj`, a table as the result."""
    lua = lupa.lua51.LuaRuntime(register_eval=False, unpack_returned_tuples=True)
    lua.globals().obj = lua.table_from(document, recursive=True)
    result = lua.execute(ARGO.read_text())
    return Health(result.status, result.message)


def _flux_expressions() -> dict[str, str]:
    (check,) = yaml.safe_load(FLUX.read_text())["spec"]["healthCheckExprs"]
    assert (check.pop("apiVersion"), check.pop("kind")) == ("wasm.tcm.io/v1alpha1", "AutoWasm")
    result: dict[str, str] = check
    return result


async def test_every_tool_computes_the_health_of_every_reason(
    objects: dict[Reason, Document],
) -> None:
    told = dict(zip(objects, await compute(list(objects.values())), strict=True))
    assert {one: health.status for one, health in told.items()} == {
        one: KSTATUS[one.progress] for one in OF_READY
    }
    for status, reasons in _PROMISED.items():
        assert {one for one in reasons if told[one].status != status} == set()
    in_flux = await compute(list(objects.values()), expressions=_flux_expressions())
    assert [one.status for one in in_flux] == [one.status for one in told.values()]
    in_argo = {reason: _in_argo(document) for reason, document in objects.items()}
    assert {one: health.status for one, health in in_argo.items()} == {
        one: "Suspended" if one is SUSPENDED else IN_ARGO[health.status]
        for one, health in told.items()
    }


async def test_every_tool_shows_our_message(objects: dict[Reason, Document]) -> None:
    told = dict(zip(objects, await compute(list(objects.values())), strict=True))
    for reason, document in objects.items():
        ready = _message(document, "Ready")
        assert ready == document["status"]["message"]
        if reason.progress is Progress.DONE:
            assert f"from {document['status']['module']['image']} is published" in ready
        elif (
            reason is Reason.FETCHING
        ):  # kstatus speaks of the generation, which is not observed yet
            assert ready.startswith("fetching registry.example/team/filter:v2")
        else:
            assert f"a message about {reason.value}" in ready
            assert told[reason].message == ready
        assert _in_argo(document).message == ready


async def test_every_condition_has_a_message_and_the_generation(
    objects: dict[Reason, Document],
) -> None:
    for reason, document in objects.items():
        conditions = document["status"]["conditions"]
        assert [one for one in conditions if not one["message"]] == []
        kinds = [one["type"] for one in conditions]
        assert ("Stalled" in kinds, "Reconciling" in kinds) == (
            reason.progress is Progress.STALLED,
            reason.progress is Progress.RECONCILING,
        )


async def test_edit_of_a_paused_rollout_is_in_progress_for_argo_until_it_is_observed(
    objects: dict[Reason, Document],
) -> None:
    paused = objects[SUSPENDED]
    edited = copy.deepcopy(paused)
    edited["metadata"]["generation"] += 1
    assert (_in_argo(paused).status, _in_argo(edited).status) == ("Suspended", "Progressing")


async def test_object_not_yet_observed_is_in_progress(tmp_path: Path) -> None:
    """Also an object that only has the default of the CRD: it must not be ready for a moment."""
    synced = await recorded(tmp_path, Reason.SYNCED, in_place=False)
    new, changed, gone = (copy.deepcopy(synced) for _ in range(3))
    new["status"] = {"observedGeneration": -1}
    changed["metadata"]["generation"] += 1
    gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    told = await compute([new, changed, gone])
    assert [one.status for one in told] == ["InProgress", "InProgress", "Terminating"]
    told = await compute([new, changed], expressions=_flux_expressions())
    assert [one.status for one in told] == ["InProgress", "InProgress"]
    for document in (new, changed, {**new, "status": None}):
        health = _in_argo(document)
        assert health.status == "Progressing"
        assert health.message.endswith(f"generation {document['metadata']['generation']}")
