"""The tutorial for a cluster, and in the cluster that it made, every how-to."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.docs import following
from tests.docs.mesh import Mesh, mesh
from tests.docs.places import INSTALL, PRIVATE, TUTORIAL, in_cluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A cluster in which the tutorial was followed."""
    async with mesh(tmp_path_factory.mktemp("docs")) as ground:
        async with ground.reader("tutorial") as terminal:
            await following.follow(TUTORIAL, terminal)
        await ground.find_release()
        yield ground


@pytest.mark.parametrize("page", in_cluster())
async def test_every_command_of_the_page_works(page: str, installed: Mesh) -> None:
    registry = installed.private_registry if page in PRIVATE else ""
    name = page.removesuffix(".md").rpartition("/")[2].lower()
    async with installed.reader(name, registry=registry) as terminal:
        await following.follow(page, terminal)


async def test_the_page_about_installing(tmp_path: Path) -> None:
    async with mesh(tmp_path) as ground, ground.reader("default-of-mine") as terminal:
        await following.follow(INSTALL, terminal)
