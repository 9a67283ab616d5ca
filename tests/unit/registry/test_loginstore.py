"""Docker's configuration, as logins change it."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from autowasm.errors import UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.registry.credentials import Credential
from autowasm.registry.dockerconfig import LoginStore

ALICE = Credential("alice", "s3cret")
AUTH = {"auth": "YWxpY2U6czNjcmV0"}


@pytest.fixture
def pools() -> Iterator[Pools]:
    with Pools(transfers=1) as pools:
        yield pools


def store(folder: Path, pools: Pools) -> LoginStore:
    return LoginStore({"DOCKER_CONFIG": str(folder)}, limits=Limits(), pools=pools)


async def test_without_a_configuration_one_is_made_for_its_owner_only(
    tmp_path: Path, pools: Pools
) -> None:
    home = LoginStore({"HOME": str(tmp_path)}, limits=Limits(), pools=pools)
    await home.keep("r.example:5000", ALICE)
    file = tmp_path / ".docker" / "config.json"
    assert json.loads(file.read_text()) == {"auths": {"r.example:5000": AUTH}}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [each.name for each in file.parent.iterdir()] == ["config.json"]


async def test_docker_hub_has_the_name_that_docker_gives_it(tmp_path: Path, pools: Pools) -> None:
    await store(tmp_path, pools).keep("docker.io", ALICE)
    text = (tmp_path / "config.json").read_text()
    assert json.loads(text) == {"auths": {"https://index.docker.io/v1/": AUTH}}
    assert await store(tmp_path, pools).remove("index.docker.io")
    assert json.loads((tmp_path / "config.json").read_text()) == {"auths": {}}


async def test_other_names_of_the_host_are_replaced_and_logins_of_repositories_stay(
    tmp_path: Path, pools: Pools
) -> None:
    old = {"https://r.example/v1/": {"auth": "x"}, "r.example/team": {"auth": "y"}}
    (tmp_path / "config.json").write_text(json.dumps({"auths": old, "proxies": {}}))
    await store(tmp_path, pools).keep("r.example", ALICE)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document == {
        "auths": {"r.example/team": {"auth": "y"}, "r.example": AUTH},
        "proxies": {},
    }


async def test_a_link_to_the_configuration_is_kept(tmp_path: Path, pools: Pools) -> None:
    (tmp_path / "dotfiles").mkdir()
    real = tmp_path / "dotfiles" / "docker.json"
    real.write_text("{}")
    (tmp_path / "config.json").symlink_to(real)
    await store(tmp_path, pools).keep("r.example", ALICE)
    assert (tmp_path / "config.json").is_symlink()
    assert json.loads(real.read_text()) == {"auths": {"r.example": AUTH}}


@pytest.mark.parametrize("text", ["not json s3cret", "[]", '{"auths": []}', '{"auths": "s3cret"}'])
async def test_a_configuration_that_is_not_understood_is_not_changed(
    tmp_path: Path, pools: Pools, text: str
) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        await store(tmp_path, pools).keep("r.example", ALICE)
    assert str(file) in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert file.read_text() == text


async def test_a_login_that_is_not_there_is_not_removed(tmp_path: Path, pools: Pools) -> None:
    assert not await store(tmp_path, pools).remove("r.example")
    assert not (tmp_path / "config.json").exists()


def test_without_a_home_there_is_no_place(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autowasm.registry.dockerconfig.home_of", lambda _: None)
    with pytest.raises(UsageError, match="DOCKER_CONFIG"):
        LoginStore({}, limits=Limits(), pools=pools)
