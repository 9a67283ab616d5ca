"""`wasmer check-download`: its exit status and message for each answer of the API server and of wasmer's Service."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from autowasm.cli import wasmer
from tests.parts import ports
from tests.unit.kube.wire import Answer, Wire, failure, json_answer, serve, write_kubeconfig

MODULE = b"\0asm and more"
SHA256 = hashlib.sha256(MODULE).hexdigest()


def _autowasm(name: str, *, ready: str = "True", sha256: str = SHA256) -> dict[str, Any]:
    module = {"source": "registry:a/b:c", "sha256": sha256, "size": len(MODULE), "abi": "0.2.1"}
    return {
        "metadata": {"namespace": "team", "name": name},
        "status": {
            "phase": "Synced",
            "module": module,
            "conditions": [{"type": "Ready", "status": ready, "reason": "Synced"}],
        },
    }


def _page(*items: dict[str, Any]) -> Answer:
    return json_answer({"metadata": {}, "items": list(items)})


def _bytes(data: bytes, *, status: int = 200) -> Answer:
    return Answer(status, {}, (data,) if data else ())


async def _checked(api: Wire, service: Wire, folder: Path) -> int:
    async with serve(api), serve(service):
        kubeconfig = write_kubeconfig(folder / "config", api.url, {"token": "t"})
        arguments = ["check-download", "--kubeconfig", str(kubeconfig), "--url", f"{service.url}/"]
        return await asyncio.to_thread(wasmer.main, arguments)


@pytest.mark.parametrize(
    ("items", "answer", "status", "says"),
    [
        ([_autowasm("a")], _bytes(MODULE), 0, "Downloaded the module of team/a, 13 B"),
        ([_autowasm("b"), _autowasm("a")], _bytes(MODULE), 0, "the module of team/a"),
        ([_autowasm("a")], _bytes(b"other"), 1, "got 5 bytes with the digest sha256:"),
        ([_autowasm("a")], _bytes(b"", status=503), 1, "status 503, for the module of team/a"),
        ([_autowasm("a", ready="False")], _bytes(b"", status=404), 0, "No AutoWasm is published"),
        ([], _bytes(b"", status=404), 0, "No AutoWasm is published"),
        ([], _bytes(b"<html>"), 1, "status 200 for a module that does not exist"),
    ],
)
async def test_the_exit_status_says_whether_the_module_arrived(
    items: list[dict[str, Any]],
    answer: Answer,
    status: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service = Wire(answer)
    assert await _checked(Wire(_page(*items)), service, tmp_path) == status
    output = capsys.readouterr().out
    assert says in output
    assert output.startswith("Failed: ") is (status == 1)
    (request,) = service.requests
    published = any(one["status"]["conditions"][0]["status"] == "True" for one in items)
    assert request.path == f"/wasm/{SHA256 if published else '0' * 64}"


async def test_a_service_that_does_not_answer_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api, url = Wire(_page(_autowasm("a"))), f"http://127.0.0.1:{ports.free_port()}"
    async with serve(api):
        kubeconfig = write_kubeconfig(tmp_path / "config", api.url, {"token": "t"})
        arguments = ["check-download", "--kubeconfig", str(kubeconfig), "--url", url]
        assert await asyncio.to_thread(wasmer.main, arguments) == 1
    assert f"Failed: {url}/wasm/{SHA256}: " in capsys.readouterr().out


async def test_a_refusal_of_the_api_server_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Wire(failure(403, "Forbidden", "no list for you"))
    assert await _checked(api, Wire(), tmp_path) == 1
    assert "Failed: AutoWasms cannot be listed: " in capsys.readouterr().out
