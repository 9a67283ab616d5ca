"""The objects that kubectl's own code reads in a file of manifests: the program in `../assets/kubectlyaml/`, over a pipe.

Not a client of a cluster: it needs none. One process answers any number of files.
"""

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.parts import provision


@dataclass(frozen=True, slots=True)
class Answer:
    """The objects before the first error, and that error (empty if there was none)."""

    objects: list[dict[str, Any]]
    error: str


class Kubectl:
    """A running program."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def read(self, content: bytes) -> Answer:
        """Numbers have the types that Python reads from the JSON that kubectl would send."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(base64.b64encode(content) + b"\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        return Answer(said["objects"], said.get("error", ""))


@contextmanager
def kubectl() -> Iterator[Kubectl]:
    """Run it until the end of the context."""
    with subprocess.Popen(
        [provision.kubectlyaml()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Kubectl(process)
        finally:
            process.kill()
