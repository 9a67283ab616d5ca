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


def _answers() -> dict[str, Any]:
    answers: dict[str, Any] = json.loads(_FILE.read_text())
    return answers


def _getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> list[Any]:
    answers = _answers()
    if host != answers["name"]:
        return _system(host, port, *arguments, **options)
    with _ASKED.open("a") as file:
        file.write(f"{answers['what']}\n")
    while answers["what"] == "hang":
        time.sleep(_POLL)
        answers = _answers()
    if answers["what"] != "addresses":
        raise socket.gaierror(getattr(socket, answers["what"]), f"{answers['what']} by the test")
    return [
        one
        for address in answers["addresses"]
        for one in _system(address, port, *arguments, **options)
    ]


socket.getaddrinfo = _getaddrinfo
