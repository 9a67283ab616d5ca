"""The tutorial for a cluster, and in the cluster that it made, every how-to."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.docs import pagerunner
from tests.docs.cluster import PageCluster, page_cluster
from tests.docs.selection import INSTALL, PRIVATE, TUTORIAL, in_cluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PageCluster]:
    """A cluster in which the tutorial has run."""
    async with page_cluster(tmp_path_factory.mktemp("docs")) as cluster:
        async with cluster.reader("tutorial") as terminal:
            await pagerunner.run(TUTORIAL, terminal)
        await cluster.find_release()
        yield cluster


@pytest.mark.parametrize("page", in_cluster())
async def test_every_command_of_the_page_works(page: str, installed: PageCluster) -> None:
    registry = installed.private_registry if page in PRIVATE else ""
    name = page.removesuffix(".md").rpartition("/")[2].lower()
    async with installed.reader(name, registry=registry) as terminal:
        await pagerunner.run(page, terminal)


async def test_the_page_about_installing(tmp_path: Path) -> None:
    async with page_cluster(tmp_path) as cluster, cluster.reader("default-of-mine") as terminal:
        await pagerunner.run(INSTALL, terminal)
