"""Warnings at a start: hosts of published modules that the address policy refuses."""

import socket
from typing import Any

import pytest
from structlog.testing import capture_logs

from autowasm.api.record import Record
from autowasm.controller.sourcepolicy import warn_of_refused
from autowasm.net.pools import Pools
from autowasm.settings import Outgoing

DIGEST = "sha256:" + "0" * 64
NAMES = {
    "inside.example": ["10.1.2.3"],
    "both.example": ["10.1.2.3", "8.8.8.8"],
    "outside.example": ["8.8.8.8"],
    "metadata.example": ["169.254.169.254"],
}


def image(name: str) -> Record:
    return Record(source=name, sha256="0" * 64, size=1, abi="0.2.1", image=f"{name}@{DIGEST}")


def url(text: str) -> Record:
    return Record(source=text, sha256="0" * 64, size=1, abi="0.2.1", url=text)


def resolve(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
    if host[0].isdigit():
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if host not in NAMES:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")
    return [
        entry
        for address in NAMES[host]
        for entry in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    ]


async def warned(*records: Record, **outgoing: Any) -> list[dict[str, Any]]:
    with Pools() as pools, capture_logs() as logs:
        await warn_of_refused(
            records, outgoing=Outgoing(**outgoing), names=pools.names, timeout=5, resolver=resolve
        )
    assert {log["log_level"] for log in logs} <= {"warning"}
    return sorted(logs, key=lambda log: str(log["host"]))


async def test_one_warning_for_each_host_has_the_number_of_modules_and_the_flag() -> None:
    logs = await warned(
        image("inside.example/a/b"),
        image("inside.example/c"),
        image("inside.example:5000/c"),
        url("http://10.9.9.9/m.wasm?secret=s"),
        image("outside.example/a"),
        image("both.example/a"),
        image("absent.example/a"),
        image("docker.io/library/a"),
        image("not an image"),
    )
    assert sorted((log["host"], log["port"], log["modules"]) for log in logs) == [
        ("10.9.9.9", 80, 1),
        ("inside.example", 443, 2),
        ("inside.example", 5000, 1),
    ]
    for log in logs:
        assert f"--allow-private-host {log['host']}:{log['port']} " in log["error"]
        assert "secret" not in str(log)


@pytest.mark.parametrize(
    "outgoing",
    [
        {"private_hosts": ("inside.example",)},
        {"allow_cidr": ("10.0.0.0/8",)},
        {"plain_http": frozenset({"inside.example"})},
        {"inside": True},
        {"proxy": "http://proxy.example:3128"},
    ],
)
async def test_allowed_address_causes_no_warning(outgoing: dict[str, Any]) -> None:
    assert await warned(image("inside.example/a"), **outgoing) == []


async def test_an_exception_from_the_proxy_is_judged() -> None:
    outgoing = {"proxy": "http://proxy.example:3128", "no_proxy": ("inside.example",)}
    assert len(await warned(image("inside.example/a"), **outgoing)) == 1
    assert len(await warned(image("10.1.2.3/a"), proxy="http://proxy.example:3128")) == 1


async def test_warning_says_that_no_setting_allows_the_address() -> None:
    logs = await warned(image("metadata.example/a"), inside=True)
    assert "no setting allows it" in logs[0]["error"]


async def test_no_published_module_causes_no_address_warning() -> None:
    assert await warned() == []
