"""Groups of Go programs: the inputs of their cache key, and which Go builds them."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.parts import cache, golang, pypi


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> golang.GoGroup:
    monkeypatch.setattr(golang, "ASSETS", tmp_path)
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "go.mod").write_text("module x\n\ngo 1.2.3\n")
    (folder / "go.sum").write_text("")
    return golang.GoGroup("demo", ("crane",), 1)


@pytest.mark.parametrize("name", ["go.mod", "go.sum"])
def test_the_key_follows_the_pinned_versions(group: golang.GoGroup, name: str) -> None:
    before = group.key()
    assert group.key() == before
    with (group.folder / name).open("a") as file:
        file.write("// another\n")
    assert group.key() != before


def test_the_key_follows_flags_and_names(group: golang.GoGroup) -> None:
    variants = [group, replace(group, ldflags="-X a=b"), replace(group, renamed={"server": "etcd"})]
    assert len({variant.key() for variant in variants}) == 3


def test_the_needed_go_is_the_one_in_go_mod(group: golang.GoGroup) -> None:
    assert golang.required_go(group.folder) == (1, 2, 3)


def test_a_go_that_no_one_has_is_an_error(group: golang.GoGroup, tmp_path: Path) -> None:
    with pytest.raises(cache.PartError, match="later than"):
        golang.go_command((99, 0))


@pytest.mark.parametrize("name", golang.GROUPS)
def test_every_group_is_pinned(name: str) -> None:
    folder = golang.GROUPS[name].folder
    assert (folder / "go.sum").is_file()
    assert golang.required_go(folder) >= (1, 25)
    assert "\ntool " in (folder / "go.mod").read_text()


@pytest.mark.parametrize("name", golang.GROUPS)
def test_the_pinned_go_builds_every_group(name: str) -> None:
    """On a machine with an older Go, or none, nothing else can."""
    pinned = tuple(int(number) for number in pypi.GO.version.split("."))
    assert golang.required_go(golang.GROUPS[name].folder) <= pinned


def test_a_group_needs_less_time_once_its_relative_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOWASM_PARTS_CACHE", str(tmp_path))
    monkeypatch.setattr(cache.log, "handlers", [])
    announced: list[cache.Part] = []
    monkeypatch.setattr(cache, "on_use", [announced.append])

    def refuse(_: Path) -> None:
        raise cache.PartError("no build in this test")

    monkeypatch.setattr(golang.GoGroup, "_build_into", lambda group, target: refuse(target))
    for _ in range(2):
        with pytest.raises(cache.PartError, match="no build"):
            golang.GROUPS["listeners"].build()
        (tmp_path / golang.GROUPS["istio"].entry()).mkdir(parents=True, exist_ok=True)
    alone, after = announced
    assert after.seconds < alone.seconds
