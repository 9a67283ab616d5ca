"""A person's own docker logins, found and changed, with real helper programs (of two lines)."""

import asyncio
import base64
import json
import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from autowasm.errors import SourceDenied, UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry.credentials import Credential
from autowasm.registry.dockerconfig import FoundLogin, LoginStore, find_login, login_places

PLAIN = {"auths": {"r.example": {"auth": base64.b64encode(b"bob:s3cret").decode()}}}
ANSWER = '{"ServerURL": "r.example", "Username": "carol", "Secret": "t0ken"}'


@dataclass
class Home:
    """A home folder with the helpers in `bin`."""

    folder: Path
    pools: Pools
    limits: Limits

    def write(self, document: object) -> None:
        text = document if isinstance(document, str) else json.dumps(document)
        (self.folder / "config.json").write_text(text)

    def helper(self, name: str, script: str) -> None:
        file = self.folder / "bin" / f"docker-credential-{name}"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    async def find(self, image: str = "r.example/team/app") -> Credential | None:
        found = await self.search(image, DOCKER_CONFIG=str(self.folder))
        return found.credential

    async def search(self, image: str = "r.example/team/app", **environment: str) -> FoundLogin:
        """With these variables and no others, but for PATH and a home of its own."""
        base = {
            "HOME": str(self.folder / "nobody"),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }
        return await find_login(
            ImageReference.parse(image),
            environment=base | environment,
            limits=self.limits,
            pools=self.pools,
        )

    def put(self, name: str, document: object) -> Path:
        """A file below the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    (tmp_path / "bin").mkdir()
    with Pools(transfers=1) as pools:
        yield Home(tmp_path, pools, Limits(credential_helper_timeout=10.0))


def login(user: str, key: str = "r.example") -> dict[str, dict[str, object]]:
    return {"auths": {key: {"auth": base64.b64encode(f"{user}:s3cret".encode()).decode()}}}


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        (
            {"HOME": "/h", "XDG_RUNTIME_DIR": "/run/user/7"},
            [
                "/run/user/7/containers/auth.json",
                "/h/.config/containers/auth.json",
                "/h/.docker/config.json",
                "/h/.dockercfg",
            ],
        ),
        (
            {"HOME": "/h", "XDG_CONFIG_HOME": "/c", "DOCKER_CONFIG": ""},
            [
                f"/run/containers/{os.getuid()}/auth.json",
                "/c/containers/auth.json",
                "/h/.docker/config.json",
                "/h/.dockercfg",
            ],
        ),
        (
            {"HOME": "/h", "DOCKER_CONFIG": "/d", "REGISTRY_AUTH_FILE": "/a.json"},
            ["/d/config.json", "/a.json", "/h/.config/containers/auth.json", "/h/.dockercfg"],
        ),
        (
            {"HOME": "/h", "DOCKER_CONFIG": "/d", "DOCKER_AUTH_CONFIG": "{}"},
            [
                "$DOCKER_AUTH_CONFIG",
                "/d/config.json",
                f"/run/containers/{os.getuid()}/auth.json",
                "/h/.config/containers/auth.json",
                "/h/.dockercfg",
            ],
        ),
        (
            {"HOME": "/h", "DOCKER_AUTH_CONFIG": "{}", "GITLAB_CI": "true"},
            [
                f"/run/containers/{os.getuid()}/auth.json",
                "/h/.config/containers/auth.json",
                "/h/.docker/config.json",
                "/h/.dockercfg",
                "$DOCKER_AUTH_CONFIG",
            ],
        ),
    ],
)
def test_the_places_are_searched_in_their_documented_order(
    environment: dict[str, str], names: list[str]
) -> None:
    assert [place.name for place in login_places(environment)] == names


def test_a_user_without_home_and_passwd_entry_has_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    names = [place.name for place in login_places({})]
    assert names == [f"/run/containers/{2**31 - 7}/auth.json"]


@pytest.mark.parametrize(
    ("variable", "value", "file"),
    [
        ("DOCKER_CONFIG", "", "config.json"),
        ("REGISTRY_AUTH_FILE", "my-auth.json", "my-auth.json"),
        ("XDG_RUNTIME_DIR", "run", "run/containers/auth.json"),
        ("XDG_CONFIG_HOME", "conf", "conf/containers/auth.json"),
        ("HOME", "", ".config/containers/auth.json"),
        ("HOME", "", ".docker/config.json"),
    ],
)
async def test_a_login_is_found_in_every_place(
    home: Home, variable: str, value: str, file: str
) -> None:
    home.put(file, login("bob"))
    found = await home.search(**{variable: str(home.folder / value)})
    assert found.credential == Credential("bob", "s3cret")


async def test_a_login_is_found_in_a_variable_and_in_dockercfg(home: Home) -> None:
    found = await home.search(DOCKER_AUTH_CONFIG=json.dumps(login("bob")))
    assert found.credential == Credential("bob", "s3cret")
    home.put(".dockercfg", login("bob")["auths"])
    found = await home.search(HOME=str(home.folder))
    assert found.credential == Credential("bob", "s3cret")


async def test_the_first_place_with_a_login_for_the_host_wins(home: Home) -> None:
    home.put(".docker/config.json", login("docker"))
    home.put("run/containers/auth.json", login("other", "other.example"))
    environment = {"HOME": str(home.folder), "XDG_RUNTIME_DIR": str(home.folder / "run")}
    found = await home.search(**environment)
    assert found.credential == Credential("docker", "s3cret")
    assert (
        found.searched[0] == f"{home.folder}/run/containers/auth.json (no login for this registry)"
    )
    home.put("run/containers/auth.json", login("podman"))
    assert (await home.search(**environment)).credential == Credential("podman", "s3cret")


async def test_the_runner_of_gitlab_does_not_hide_the_jobs_own_login(home: Home) -> None:
    home.put(".docker/config.json", login("job"))
    environment = {
        "HOME": str(home.folder),
        "DOCKER_AUTH_CONFIG": json.dumps(login("runner")),
    }
    assert (await home.search(**environment)).credential == Credential("runner", "s3cret")
    found = await home.search(**environment, GITLAB_CI="true")
    assert found.credential == Credential("job", "s3cret")


async def test_keys_of_containers_auth_json_may_name_a_repository(home: Home) -> None:
    auths: dict[str, object] = {}
    for key in ("r.example", "r.example/team", "r.example/team/app", "r.example/te"):
        auths |= login(key.replace("/", "-").replace(".", "-"), key)["auths"]
    path = home.put("auth.json", {"auths": auths})
    for image, user in (
        ("r.example/team/app:v1", "r-example-team-app"),
        ("r.example/team/application:v1", "r-example-team"),
        ("r.example/teams/app:v1", "r-example"),
        ("r.example/te/a/b", "r-example-te"),
    ):
        found = await home.search(image, REGISTRY_AUTH_FILE=str(path))
        assert found.credential == Credential(user, "s3cret"), image


async def test_without_a_login_every_searched_place_is_listed_with_the_reason(home: Home) -> None:
    home.put(".docker/config.json", {})
    home.put(".dockercfg", "auth = abc")
    found = await home.search(HOME=str(home.folder), XDG_RUNTIME_DIR="/nowhere")
    assert found == FoundLogin(
        None,
        (
            "/nowhere/containers/auth.json (absent)",
            f"{home.folder}/.config/containers/auth.json (absent)",
            f"{home.folder}/.docker/config.json (no login for this registry)",
            f"{home.folder}/.dockercfg (not JSON)",
        ),
    )


async def test_a_file_of_podman_that_is_malformed_does_not_end_a_command(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.put("run/containers/auth.json", "{")
    home.put(".docker/config.json", login("bob"))
    found = await home.search(HOME=str(home.folder), XDG_RUNTIME_DIR=str(home.folder / "run"))
    assert found.credential == Credential("bob", "s3cret")
    captured = capsys.readouterr()
    assert "run/containers/auth.json" in captured.out + captured.err


@pytest.mark.parametrize("variable", ["REGISTRY_AUTH_FILE", "DOCKER_AUTH_CONFIG"])
async def test_a_malformed_document_that_was_named_ends_the_command(
    home: Home, variable: str
) -> None:
    path = home.put("auth.json", "{s3cret")
    value = str(path) if variable == "REGISTRY_AUTH_FILE" else "{s3cret"
    with pytest.raises(UsageError, match="not JSON") as caught:
        await home.search(**{variable: value})
    assert "s3cret" not in str(caught.value)


async def test_no_file_is_no_login(home: Home) -> None:
    assert await home.find() is None


async def test_a_login_in_the_file_is_found(home: Home) -> None:
    home.write(PLAIN)
    assert await home.find() == Credential("bob", "s3cret")
    assert await home.find("other.example/x") is None


async def test_the_helper_of_the_host_wins_and_is_asked_for_the_host(home: Home) -> None:
    home.write({**PLAIN, "credHelpers": {"r.example": "mine"}, "credsStore": "absent"})
    home.helper(
        "mine", f"cat > {home.folder}/asked; echo \"$@\" >> {home.folder}/asked; echo '{ANSWER}'"
    )
    assert await home.find() == Credential("carol", "t0ken")
    assert (home.folder / "asked").read_text() == "r.exampleget\n"


async def test_the_helper_of_another_host_is_not_asked(home: Home) -> None:
    home.write({**PLAIN, "credHelpers": {"other.example": "absent"}})
    assert await home.find() == Credential("bob", "s3cret")


async def test_the_store_is_asked_for_docker_hub_by_its_old_name(home: Home) -> None:
    home.write({"credsStore": "store"})
    home.helper("store", f"cat > {home.folder}/asked; echo '{ANSWER}'")
    assert await home.find("library/nginx") == Credential("carol", "t0ken")
    assert (home.folder / "asked").read_text() == "https://index.docker.io/v1/"


async def test_a_store_that_knows_no_login_leaves_it_to_the_file(home: Home) -> None:
    home.write({**PLAIN, "credsStore": "store"})
    home.helper("store", "echo 'credentials not found in native keychain'; exit 1")
    assert await home.find() == Credential("bob", "s3cret")


async def test_a_store_that_does_not_work_is_passed_over(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.write({**PLAIN, "credsStore": "absent"})
    assert await home.find() == Credential("bob", "s3cret")
    captured = capsys.readouterr()
    assert "docker-credential-absent" in captured.out + captured.err


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'no key ring'; exit 1", "exit status 1"),
        ("echo not-json-s3cret", "not a credential"),
        ('echo \'{"Username": 1, "Secret": "s3cret"}\'', "not a credential"),
        ('echo \'{"Username": "u", "Secret": "s3cret\\\\ud800"}\'', "not a credential"),
        (None, "cannot be run"),
    ],
)
async def test_a_helper_of_the_host_that_does_not_work_is_an_error(
    home: Home, script: str | None, message: str
) -> None:
    home.write({**PLAIN, "credHelpers": {"r.example": "mine"}})
    if script:
        home.helper("mine", script)
    with pytest.raises(SourceDenied, match=message) as caught:
        await home.find()
    assert caught.value.reason == "CredentialHelper"
    assert "s3cret" not in str(caught.value)


async def test_a_helper_that_hangs_is_ended(home: Home) -> None:
    home.limits = Limits(credential_helper_timeout=0.3)
    home.write({"credHelpers": {"r.example": "mine"}})
    home.helper("mine", f"echo $$ > {home.folder}/pid; exec sleep 60")
    with pytest.raises(SourceDenied, match=r"did not answer within 0\.3 s"):
        await home.find()
    pid = int((home.folder / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_helper_that_hangs_in_a_program_of_its_own_is_left(home: Home) -> None:
    home.limits = Limits(credential_helper_timeout=0.3)
    home.write({"credHelpers": {"r.example": "mine"}})
    home.helper("mine", f"sleep 60 & echo $! > {home.folder}/pid; wait")
    try:
        async with asyncio.timeout(10):
            with pytest.raises(SourceDenied, match=r"did not answer within 0\.3 s"):
                await home.find()
    finally:
        os.kill(int((home.folder / "pid").read_text()), signal.SIGKILL)


async def test_the_name_of_a_helper_cannot_be_a_path(home: Home) -> None:
    home.write({"credHelpers": {"r.example": "../../evil"}})
    with pytest.raises(SourceDenied, match="not the name"):
        await home.find()


async def test_identity_tokens_are_found_in_the_file_and_in_a_helper(home: Home) -> None:
    home.write({"auths": {"https://r.example/v1/": {"auth": "", "identitytoken": "s3cret"}}})
    assert await home.find() == Credential("", "", identity_token="s3cret")
    assert await home.find("other.example/x") is None

    home.write({"credsStore": "store"})
    home.helper("store", 'echo \'{"Username": "<token>", "Secret": "s3cret"}\'')
    assert await home.find() == Credential("", "", identity_token="s3cret")


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": []}', '{"auths": {"r.example": 1}}'])
async def test_a_malformed_file_is_named(home: Home, text: str) -> None:
    home.write(text)
    with pytest.raises(UsageError, match=r"config\.json: "):
        await home.find()


async def test_a_file_of_logins_that_is_too_large_is_passed_over_or_refused(home: Home) -> None:
    home.limits = Limits(token_bytes=100)
    home.write(PLAIN | {"x": "y" * 100})
    with pytest.raises(UsageError, match="too large for a docker config"):
        await home.find()


async def test_a_user_without_a_home_gets_a_message_that_none_was_searched(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    found = await home.search(HOME="")
    assert found.credential is None
    assert found.searched[-1] == "no home directory: HOME is not set"


@pytest.mark.parametrize("auth", ["!", "Ym9i"], ids=["no base64", "no password"])
async def test_login_of_podman_that_is_malformed_does_not_end_a_command(
    home: Home, capsys: pytest.CaptureFixture[str], auth: str
) -> None:
    home.put("run/containers/auth.json", json.dumps({"auths": {"r.example": {"auth": auth}}}))
    home.put(".docker/config.json", login("bob"))
    found = await home.search(HOME=str(home.folder), XDG_RUNTIME_DIR=str(home.folder / "run"))
    assert found.credential == Credential("bob", "s3cret")
    captured = capsys.readouterr()
    assert "run/containers/auth.json" in captured.out + captured.err


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
