"""Where the logins of a person or a CI job are kept: the files and variables of Docker, podman, buildah and skopeo.

Says where to look and in which order; `dockerconfig.py` reads. Invariant: the list depends on the environment and the
user's home only, so a message can name every place that was searched.

Sources: docker/cli `cli/config/config.go` ($DOCKER_CONFIG) and `cli/config/configfile/file.go` ($DOCKER_AUTH_CONFIG before
files, docker/cli#6008); containers-auth.json(5); containers/common `pkg/auth` ($REGISTRY_AUTH_FILE replaces
${XDG_RUNTIME_DIR}/containers/auth.json); docker/cli#6156 (GitLab CI).
"""

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

AUTH_VARIABLE: Final = "DOCKER_AUTH_CONFIG"
"""Holds a document itself, not its name."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file, or a variable that holds a document (`path` None)."""

    name: str
    """For messages."""
    path: Path | None = None
    named: bool = False
    """The user named it: a file that cannot be opened ends the command."""
    strict: bool = False
    """A malformed document ends the command: it is one that the user named, or Docker's own."""
    is_dockercfg: bool = False
    """In the older form, which holds what `auths` holds and nothing around it."""


def login_places(environment: Mapping[str, str]) -> tuple[Place, ...]:
    """The places in the order in which they are searched; the first one with a login for the registry wins."""
    home = home_of(environment)
    places = (
        [Place(f"${AUTH_VARIABLE}", named=True, strict=True)]
        if environment.get(AUTH_VARIABLE)
        else []
    )
    if places and environment.get("GITLAB_CI"):
        # The runner sets it for its own pulls: it must not win over the job's `docker login`.
        return (*_files(environment, home), *places)
    return (*places, *_files(environment, home))


def home_of(environment: Mapping[str, str]) -> Path | None:
    """$HOME, else the user's entry in passwd; None for a user without either (an arbitrary uid in a container)."""
    if environment.get("HOME"):
        return Path(environment["HOME"])
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def _files(environment: Mapping[str, str], home: Path | None) -> list[Place]:
    docker = environment.get("DOCKER_CONFIG")
    override = environment.get("REGISTRY_AUTH_FILE")
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.getuid()}"
    config = environment.get("XDG_CONFIG_HOME") or (home and home / ".config")
    # containers-auth.json(5): below /run/containers/$UID the file has no further folder.
    podman = Path(runtime) / "containers" if environment.get("XDG_RUNTIME_DIR") else Path(runtime)
    places = []
    if docker:
        places.append(_file(Path(docker) / "config.json", named=True))
    if override:
        places.append(_file(Path(override), named=True))
    else:
        places.append(_file(podman / "auth.json"))
    if config:
        places.append(_file(Path(config) / "containers" / "auth.json"))
    if home is not None:
        if not docker:
            places.append(_file(home / ".docker" / "config.json", strict=True))
        places.append(_file(home / ".dockercfg", is_dockercfg=True))
    return places


def _file(
    path: Path, *, named: bool = False, strict: bool = False, is_dockercfg: bool = False
) -> Place:
    return Place(str(path), path, named=named, strict=strict or named, is_dockercfg=is_dockercfg)
