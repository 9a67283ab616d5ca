"""The environment of the commands of a page: programs, folders, a registry. Each page gets a folder of its own.

Not a cluster (`cluster.py`).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.docs.blocks import ROOT
from tests.docs.shell import Shell, shell
from tests.parts import goruntime, ports, provision, registry, wasmer
from tests.parts.clients import inherited

_PORTS = ("10000", "9000", "8081", "8080")


def prepare(directory: Path) -> dict[str, str]:
    """Programs in `bin`, the repository's folders that pages speak of, a home; the environment."""
    programs = {
        "wasmc": wasmer.program("wasmc"),
        "wasmer": wasmer.program("wasmer"),
        "wat2wasm": provision.wat2wasm(),
        "kubectl": provision.kubectl(),
        "helm": provision.helm(),
        "envoy": provision.envoy(),
    }
    for folder in ("bin", "home/.docker"):
        (directory / folder).mkdir(parents=True)
    for name, program in programs.items():
        (directory / "bin" / name).symlink_to(program)
    for folder in ("examples", "manifests", "dashboards"):
        (directory / folder).symlink_to(ROOT / folder)
    home = directory / "home"
    variables = inherited()
    return {
        **variables,
        **goruntime.BRIEF,
        "PATH": f"{directory / 'bin'}:{variables['PATH']}",
        "HOME": str(home),
        "DOCKER_CONFIG": str(home / ".docker"),
        "COLUMNS": "80",
    }


@asynccontextmanager
async def laptop(directory: Path) -> AsyncIterator[Shell]:
    """A machine with a registry at localhost:5000, Envoy and our programs."""
    environment = await asyncio.to_thread(prepare, directory)
    taken = ports.free_ports(len(_PORTS))
    async with registry.distribution(directory / "registry") as store:
        replacements = {"localhost:5000": store.host}
        replacements |= {old: str(new) for old, new in zip(_PORTS, taken, strict=True)}
        async with shell(directory, environment, replacements) as terminal:
            yield terminal
