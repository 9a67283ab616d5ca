"""`make demo ARGS=--mesh` shows that a good version reaches all Pods, a bad one only the first, and no request fails."""

import re

import pytest

from tests.demo import meshtour

pytestmark = pytest.mark.timeout(600)


async def test_the_demo_ends_with_the_bad_version_stopped_at_the_first_pod(
    capsys: pytest.CaptureFixture[str],
) -> None:
    await meshtour.main(keep=False)
    told = capsys.readouterr().out
    _, first, rest = told.partition("\n2. ")
    assert first
    assert rest.count("hello: world\n") >= meshtour.PODS
    assert [int(found) for found in re.findall(r"\(exit status (\d)\)", rest)] == [0, 0, 1]
    assert len(re.findall(r"hello-\d  \d+ requests, 0 failed \(", rest)) == 2 * meshtour.PODS
    aborted = re.search(
        r"Aborted: ConfigurationRefused: step 1 of 3: Envoy of Pod default/(\S+)", rest
    )
    assert aborted is not None
    assert f"Envoy's listeners changed in {aborted[1]} only" in " ".join(rest.split())
    assert "| error    Rollout      Pod default/" in rest
    assert re.search(r"\| [0-9a-f]{16}  3 +[0-9a-f]{64}  new: aborted", rest)
    assert rest.rstrip().endswith("All processes of the demo have ended.")
