"""A name service with faults on command, inside a process that is started with this folder on PYTHONPATH.

A test has no permission to make the system's resolver fail. Lookups of other names go to the system's resolver.
Invariant: each lookup of the name is one line in `<file>.asked`. `names.py` writes the file.
"""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

_FILE = Path(os.environ["AUTOWASM_TEST_NAMES"])
_ASKED = _FILE.with_name(f"{_FILE.name}.asked")
_POLL = 0.05
_system = socket.getaddrinfo


def _told() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(_FILE.read_text())
    return told


def _getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> list[Any]:
    told = _told()
    if host != told["name"]:
        return _system(host, port, *arguments, **options)
    with _ASKED.open("a") as file:
        file.write(f"{told['what']}\n")
    while told["what"] == "hang":
        time.sleep(_POLL)
        told = _told()
    if told["what"] != "addresses":
        raise socket.gaierror(getattr(socket, told["what"]), f"{told['what']} by the test")
    return [
        one
        for address in told["addresses"]
        for one in _system(address, port, *arguments, **options)
    ]


socket.getaddrinfo = _getaddrinfo
