"""`wasmer check-uninstall` without a real API server: its messages, also without a connection."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from autowasm.cli import charthooks, wasmer
from tests.unit.kube.wire import Wire, failure, json_answer, serve, write_kubeconfig


def _autowasm(number: int) -> charthooks.Document:
    return {"metadata": {"namespace": "team", "name": f"filter-{number}"}}


def test_uninstall_check_names_the_first_autowasms_and_counts_the_rest() -> None:
    output = charthooks._uninstall_report([_autowasm(n) for n in range(500)], more=20)
    assert "the cluster has 520 AutoWasms" in output
    assert "team/filter-9, …" in output
    assert "filter-10" not in output
    assert "--no-hooks" in output


def test_uninstall_check_passes_only_if_no_autowasm_is_left() -> None:
    assert "can be uninstalled" in charthooks._uninstall_report([], more=0)
    assert "Refused" in charthooks._uninstall_report([], more=3)


def test_check_outside_a_cluster_names_the_missing_kubeconfig(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        wasmer.main(["check-uninstall", "--kubeconfig", str(tmp_path / "none")])
    assert caught.value.code == 2
    assert "none" in capsys.readouterr().err


def _page(*items: Any, more: int | None = None) -> dict[str, Any]:
    return {"metadata": {} if more is None else {"remainingItemCount": more}, "items": list(items)}


async def _asked(wire: Wire, folder: Path) -> int:
    async with serve(wire):
        kubeconfig = write_kubeconfig(folder / "config", wire.url, {"token": "t"})
        return await asyncio.to_thread(
            wasmer.main, ["check-uninstall", "--kubeconfig", str(kubeconfig)]
        )


DELETED = {"metadata": {"namespace": "a", "name": "b", "deletionTimestamp": "2026-01-01T00:00:00Z"}}


@pytest.mark.parametrize(
    ("document", "status", "says"),
    [
        (_page(), 0, "The cluster has no AutoWasms"),
        (_page(DELETED), 0, "The cluster has no AutoWasms"),
        (_page(_autowasm(1), DELETED), 1, "the cluster has 1 AutoWasm (team/filter-1)"),
        (_page(_autowasm(1), more=7), 1, "the cluster has 8 AutoWasms"),
    ],
)
async def test_uninstall_check_reports_its_result_by_exit_status(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    document: dict[str, Any],
    status: int,
    says: str,
) -> None:
    wire = Wire(json_answer(document))
    assert await _asked(wire, tmp_path) == status
    assert says in capsys.readouterr().out
    assert [(one.method, one.path) for one in wire.requests] == [
        ("GET", "/apis/wasm.tcm.io/v1alpha1/autowasms")
    ]


async def test_without_the_resource_there_is_nothing_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await _asked(Wire(failure(404, "NotFound")), tmp_path) == 0
    assert "can be uninstalled" in capsys.readouterr().out


async def test_a_refusal_is_no_permission_to_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await _asked(Wire(failure(403, "Forbidden", "no list for you")), tmp_path) == 1
    output = capsys.readouterr().out
    assert "AutoWasms cannot be listed" in output
    assert "no list for you" in output
    assert "--no-hooks" in output


@pytest.mark.parametrize("patience", [60.0, -1.0])
async def test_uninstall_check_retries_server_errors_until_the_deadline(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    patience: float,
) -> None:
    monkeypatch.setattr(charthooks, "_DEADLINE", patience)
    monkeypatch.setattr(charthooks, "_PAUSE", 0.0)
    failures = (failure(500, "InternalError"), failure(429, "TooManyRequests"))
    wire = Wire(*failures, json_answer(_page()))
    assert await _asked(wire, tmp_path) == (0 if patience > 0 else 1)
    assert len(wire.requests) == (3 if patience > 0 else 1)
    assert ("can be uninstalled" in capsys.readouterr().out) is (patience > 0)
