"""`wasmc` as its user has it: a home folder, in which it runs, and a registry.

Invariant: all images are in one repository, `team/filter`, so a test names an image by its tag. A test file derives a class
from `CommandLine` for the commands and the programs that its tests need.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from tests.parts.clients import Client, Completed
from tests.parts.registry import RegistryServer


@dataclass(frozen=True)
class CommandLine:
    """`home` is the home folder of `wasmc` (`wasmer.wasmc`), and the folder in which it runs."""

    home: Path
    registry: RegistryServer
    wasmc: Client

    @property
    def repository(self) -> str:
        """The repository of the images, without a tag."""
        return f"{self.registry.host}/team/filter"

    def image(self, tag: str) -> str:
        """The name of the image with this tag."""
        return f"{self.repository}:{tag}"

    async def push(self, tag: str, module: bytes, *arguments: str) -> Completed:
        """Push the module, as the file `example.wasm` of the home folder. Raises ClientError."""
        await asyncio.to_thread((self.home / "example.wasm").write_bytes, module)
        return await self.wasmc.run("push", self.image(tag), "-f", "./example.wasm", *arguments)
