"""The workflows run all of .ci/run, and publish under the names that the pages have.

What they may do, and whether they can be read, is checked by zizmor and actionlint (`make lint`).
"""

import re
from pathlib import Path
from typing import Any

import yaml

from tools.release import dist

ROOT = Path(__file__).parents[2]


def _workflow(name: str) -> Any:
    return yaml.safe_load((ROOT / ".github/workflows" / name).read_text())


def test_every_part_of_ci_run_is_run_on_some_machine() -> None:
    wanted = re.findall(r"^if is_wanted (\w+);", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    jobs = _workflow("ci.yml")["jobs"]
    found = []
    for job in jobs.values():
        parts = job.get("strategy", {}).get("matrix", {}).get("part", [])
        for step in job["steps"]:
            command = step.get("run", "")
            if command == '.ci/run "$PART"':
                found += parts
            elif command.startswith(".ci/run "):
                found.append(command.removeprefix(".ci/run "))
    assert sorted(found) == sorted(wanted) == ["lint", "long", "test"]


def test_nothing_is_published_before_all_checks_and_tests() -> None:
    jobs = _workflow("release.yml")["jobs"]

    def before(name: str) -> set[str]:
        needs = jobs[name].get("needs", [])
        direct = {needs} if isinstance(needs, str) else set(needs)
        return direct.union(*map(before, direct))

    for name, job in jobs.items():
        if "write" in job.get("permissions", {}).values():
            assert {"check", "test", "files"} <= before(name), name
    assert {"pypi", "image", "chart"} <= before("release")


def test_names_are_those_of_the_pages() -> None:
    page = (ROOT / "docs/get.md").read_text()
    workflow = (ROOT / ".github/workflows/release.yml").read_text()
    assert re.findall(
        r"ghcr\.io/\$\{GITHUB_REPOSITORY_OWNER,,\}/(\S+?)\"?$", workflow, re.MULTILINE
    ) == [
        "wasmer",
        "charts",
    ]
    assert "ghcr.io/autowasm/wasmer:" in page
    assert "oci://ghcr.io/autowasm/charts/wasmer" in page
    assert dist.single_file_name().startswith("wasmc-linux-")
    assert "releases/latest/download/wasmc-linux-" in page
