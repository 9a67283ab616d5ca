"""A person's own docker logins, with real helper programs (of two lines)."""

import asyncio
import base64
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from autowasm.errors import SourceDenied, UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry.credentials import Credential
from autowasm.registry.dockerconfig import config_path, find_login

PLAIN = {"auths": {"r.example": {"auth": base64.b64encode(b"bob:s3cret").decode()}}}
ANSWER = '{"ServerURL": "r.example", "Username": "carol", "Secret": "t0ken"}'


@dataclass
class Home:
    """A home folder whose `bin` has the helpers."""

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
        environment = {
            "DOCKER_CONFIG": str(self.folder),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }
        return await find_login(
            ImageReference.parse(image),
            environment=environment,
            limits=self.limits,
            pools=self.pools,
        )


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    (tmp_path / "bin").mkdir()
    with Pools(transfers=1) as pools:
        yield Home(tmp_path, pools, Limits(credential_helper_timeout=10.0))


def test_the_folder_is_dockers() -> None:
    assert config_path({"DOCKER_CONFIG": "/d", "HOME": "/h"}) == Path("/d/config.json")
    assert config_path({"HOME": "/h"}) == Path("/h/.docker/config.json")
    assert config_path({"HOME": "/h", "DOCKER_CONFIG": ""}) == Path("/h/.docker/config.json")


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
        ("echo 'no key ring'; exit 1", "ended with status 1"),
        ("echo not-json-s3cret", "not understood"),
        ('echo \'{"Username": 1, "Secret": "s3cret"}\'', "not understood"),
        ('echo \'{"Username": "u", "Secret": "s3cret\\\\ud800"}\'', "not understood"),
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
    with pytest.raises(SourceDenied, match=r"no answer within 0\.3 s"):
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
            with pytest.raises(SourceDenied, match=r"no answer within 0\.3 s"):
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
