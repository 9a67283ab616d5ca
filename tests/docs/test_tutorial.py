"""The tutorial for a laptop, and README's tour, followed to the letter on real parts."""

from pathlib import Path

import pytest

from tests.docs import environment, pagerunner
from tests.docs.selection import LAPTOP

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("page", sorted(LAPTOP))
async def test_it_works_to_the_letter(page: str, tmp_path: Path) -> None:
    async with environment.laptop(tmp_path) as terminal:
        await pagerunner.run(page, terminal)
