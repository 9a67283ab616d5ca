"""`wasmc plan` with an operator's policy for the rollout of a namespace: its output matches the actions of wasmer."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import yaml

from tests.clusterfixtures import PrivateInstallation
from tests.parts import wat
from tests.parts.controlplane import ControlPlane
from tests.parts.explaining import install_server, run_wasmc
from tests.parts.installation import Document, Installation

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

POLICY = """\
namespaces:
  careful-*:
    minimumRollout: {firstStep: 1, pause: 2m}
  "*":
    rollout: {steps: [1, 25%], pause: 1s}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def installation(
    private_installation: PrivateInstallation, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    directory = tmp_path_factory.mktemp("policy")
    policy = directory / "policy.yaml"
    await asyncio.to_thread(policy.write_text, POLICY)
    arguments = ["--policy-file", str(policy)]
    async with private_installation(directory, arguments=arguments) as installation:
        await install_server(installation)
        yield installation


async def plan(installation: Installation, document: Document, *more: str) -> Document:
    done = await run_wasmc(
        installation, "plan", "-f", "-", "--json", *more, stdin=yaml.safe_dump(document)
    )
    (found,) = json.loads(done.stdout)
    result: Document = found
    return result


def said(plan: Document, check: str) -> str:
    """The finding of this check, with its advice."""
    (found,) = [one for one in plan["findings"] if one["check"] == check]
    return f"{found['what']}; {found['remedy']}"


async def test_plan_with_the_policy_has_the_steps_and_the_filter_that_wasmer_writes(
    control_plane: ControlPlane, installation: Installation
) -> None:
    namespace = await control_plane.add_namespace()
    await installation.add_pull_secret(namespace)
    image = await installation.push("policy", wat.header_filter("policy"))
    document = installation.autowasm(image, namespace=namespace)
    policy = ("--policy-file", str(installation.directory / "policy.yaml"))
    planned = await plan(installation, document, *policy)
    assert planned["action"] == "create"
    assert "(1, 25%, all), each of which must stay healthy for 1s, by the operator's policy" in (
        said(planned, "Rollout")
    )
    await installation.apply(document)
    await installation.wait_phase("Synced", namespace=namespace)
    live = await installation.envoyfilter(namespace=namespace)
    assert live["spec"] == planned["envoyFilter"]["spec"]
    # Without the policy, plan knows that there are steps, but not which.
    for more in (policy, ()):
        assert (await plan(installation, document, *more))["action"] == "unchanged"
    assert "--policy-file" in said(await plan(installation, document), "Rollout")
    await control_plane.clean(namespace)


async def test_plan_with_the_policy_refuses_a_rollout_that_is_less_careful_than_required(
    control_plane: ControlPlane, installation: Installation
) -> None:
    namespace = await control_plane.add_namespace("careful")
    await installation.add_pull_secret(namespace)
    image = await installation.push("policy", wat.header_filter("policy"))
    document = installation.autowasm(image, namespace=namespace)
    policy = ("--policy-file", str(installation.directory / "policy.yaml"))
    assert "(1, 10%, 50%, all), each of which must stay healthy for 2m" in (
        said(await plan(installation, document, *policy), "Rollout")
    )
    document["spec"]["rollout"] = {"pause": "5s"}
    assert "must be at least 2m, not 5s" in (
        said(await plan(installation, document, *policy), "PolicyDenied")
    )
    await installation.apply(document)
    failed = await installation.wait_phase("Failed", namespace=namespace)
    assert "must be at least 2m, not 5s" in failed["status"]["message"]
    await control_plane.clean(namespace)
