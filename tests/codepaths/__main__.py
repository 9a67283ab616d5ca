"""`python -m tests.codepaths`: how many files of `src` a reader has to open to follow one of three paths.

A new AutoWasm, from the watch to its status; a GET for a module that the replica does not have; `wasmc push`. Real parts
run them. Files are printed, so that two runs can be compared.
"""

import argparse
import asyncio
import hashlib
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.parts import clients, wasmer, wat, wire
from tests.parts.controlplane import shared_control_plane
from tests.parts.installation import PASSWORD, USER, Installation, installed

_SITE = Path(__file__).parent
_WAIT_SECONDS = 60


def main() -> int:
    """Print the files of each path."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.codepaths", description="Files of src on three paths."
    )
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, files in asyncio.run(_paths(Path(folder))).items():
            print(f"{name}: {len(files)} files")
            print("".join(f"  {file}\n" for file in files))
    return 0


async def _paths(folder: Path) -> dict[str, list[str]]:
    out = folder / "files"
    async with (
        shared_control_plane(folder / "plane") as plane,
        installed(plane.cluster, plane.kubectl, folder / "installation", env=_traced(out)) as made,
    ):
        return {
            "a new AutoWasm": await _autowasm(made, out),
            "GET for a missing module": await _missing(made, out),
            "wasmc push": await _push(made, folder),
        }


def _traced(out: Path) -> Mapping[str, str]:
    return {"PYTHONPATH": str(_SITE), "AUTOWASM_CODEPATHS": str(out)}


async def _autowasm(made: Installation, out: Path) -> list[str]:
    """The module is pulled with the Secret, checked and stored, the EnvoyFilter and the status are written."""
    image = await made.push("one", wat.header_filter("one"))
    pid = made.wasmer.process.pid
    os.kill(pid, signal.SIGUSR1)
    await made.apply(made.autowasm(image))
    await made.wait_phase("Synced")
    return await _written(pid, out)


async def _missing(made: Installation, out: Path) -> list[str]:
    """As for a sidecar's request: the file of a published module was removed, and wasmer fetches it again.

    The AutoWasm is reconciled soon afterwards, which is no part of the path: the shortest of three counts.
    """
    module = wat.header_filter("one")
    sha256 = hashlib.sha256(module).hexdigest()
    pid, found = made.wasmer.process.pid, []
    for _ in range(3):
        await asyncio.to_thread((made.directory / "wasmer/cache/blobs" / sha256).unlink)
        os.kill(pid, signal.SIGUSR1)
        answer = await wire.request(
            "GET", f"http://{made.wasmer.host}/wasm/{sha256}", timeout=_WAIT_SECONDS
        )
        assert answer.body == module, answer
        found.append(await _written(pid, out))
        await made.wait_phase("Synced")
    return min(found, key=len)


async def _push(made: Installation, folder: Path) -> list[str]:
    out, file = folder / "pushed", folder / "two.wasm"
    await asyncio.to_thread(file.write_bytes, wat.header_filter("two"))
    image = f"{made.registry.host}/xxx/hello:two"
    traced = {**_traced(out), "AUTOWASM_CODEPATHS_THREADS": "1"}
    client = clients.Client(wasmer.program("wasmc"), folder, traced)
    arguments = ("push", image, "-f", str(file), "--username", USER, "--password-stdin")
    await client.run(*arguments, stdin=PASSWORD.encode())
    return await asyncio.to_thread(lambda: out.read_text().splitlines())


async def _written(pid: int, out: Path) -> list[str]:
    out.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR2)
    async with asyncio.timeout(_WAIT_SECONDS):
        while not out.exists():
            await asyncio.sleep(0.01)
    return out.read_text().splitlines()


if __name__ == "__main__":
    sys.exit(main())
