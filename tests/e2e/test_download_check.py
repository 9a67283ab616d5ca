"""`helm test` of the chart, as its Job runs it: a published module is downloaded from a real wasmer and verified."""

import pytest

from tests.parts import wasmer, wat
from tests.parts.clients import Client
from tests.parts.installation import Installation

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]


async def test_published_module_can_be_downloaded(
    installation: Installation, namespace: str
) -> None:
    image = await installation.push("download", wat.header_filter("download"))
    await installation.apply(installation.autowasm(image, namespace=namespace))
    await installation.wait_phase("Synced", namespace=namespace)
    program = Client(wasmer.program("wasmer"), installation.directory, {})
    kubeconfig = str(installation.cluster.kubeconfig)
    url = f"http://{installation.wasmer.host}"
    done = await program.run("check-download", "--kubeconfig", kubeconfig, "--url", url)
    assert done.stdout.startswith(f"Downloaded the module of {namespace}/test, ")
