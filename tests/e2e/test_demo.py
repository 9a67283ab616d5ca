"""`make demo` shows that a filter runs, and a second version replaces it without a failed request."""

import pytest

from tests.demo import tour

pytestmark = pytest.mark.timeout(300)


async def test_the_demo_ends_with_both_filters_run(capsys: pytest.CaptureFixture[str]) -> None:
    await tour.main(keep=False)
    told = capsys.readouterr().out
    _, plain, rest = told.partition("| HTTP/1.1 200")
    assert plain
    _, world, rest = rest.partition("| hello: world\n")
    assert world
    assert "Synced: module sha256:" in " ".join(rest.split())
    assert "| hello: earth\n" in rest
    assert " requests, 0 failed (" in rest
    assert rest.rstrip().endswith("All processes of the demo have ended.")
