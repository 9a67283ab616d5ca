"""A container of a Deployment or a Job, run from its YAML: arguments, environment, user, volumes and probes are those written there.

Not a kubelet: no image is pulled, no Pod scheduled, nothing restarted, and the container shares the machine's network and
processes, so ports must be mapped. Invariant: the container can write only to the writable mounts of its Deployment
(`_pod.py` enforces it).
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.parts import wire
from tests.parts.process import Process

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

_CONFINE = Path(__file__).with_name("_pod.py")
# As the kubelet sends.
_PROBE_HEADERS = {"user-agent": "kube-probe/1.36", "accept": "*/*", "connection": "close"}

Document = Mapping[str, Any]
ProbeName = Literal["startupProbe", "readinessProbe", "livenessProbe"]


class ServiceAccountVolume:
    """The folder that the kubelet mounts into a Pod: all its files change in one step, by a symlink."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, bytes] = {}
        self._versions = 0

    def write(self, **files: bytes) -> None:
        """Replace these files (`token`, `ca_crt`, `namespace`); the others stay."""
        self._files |= {name.replace("_", "."): content for name, content in files.items()}
        self._versions += 1
        version = self.directory / f"..version_{self._versions}"
        version.mkdir(parents=True)
        for name, content in self._files.items():
            (version / name).write_bytes(content)
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")
        fresh = self.directory / "..data_tmp"
        fresh.symlink_to(version.name)
        fresh.replace(self.directory / "..data")


@dataclass(frozen=True, slots=True)
class Container:
    """The only container of a Deployment, of a Pod called `pod` at `address`."""

    deployment: Document
    pod: str
    address: str

    @property
    def template(self) -> Document:
        """The Pod's spec."""
        spec: Document = self.deployment["spec"]["template"]["spec"]
        return spec

    @property
    def spec(self) -> Document:
        """The container's."""
        (container,) = self.template["containers"]
        spec: Document = container
        return spec

    @property
    def user(self) -> tuple[int, int]:
        """User and group, as numbers."""
        context = {**self.template["securityContext"], **self.spec["securityContext"]}
        assert context["runAsNonRoot"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        return context["runAsUser"], context["runAsGroup"]

    @property
    def environment(self) -> dict[str, str]:
        """The variables of `env`, with each `fieldRef` resolved."""
        fields = {
            "metadata.name": self.pod,
            "metadata.namespace": self.deployment["metadata"]["namespace"],
            "metadata.uid": "3f1f6d0a-5d4e-4b0e-9a55-0d8a2c1b7e11",
            "spec.nodeName": "node",
            "spec.serviceAccountName": self.template["serviceAccountName"],
            "status.hostIP": self.address,
            "status.podIP": self.address,
            "status.podIPs": self.address,
        }
        variables = {}
        for variable in self.spec.get("env", ()):
            given = variable.get("valueFrom")
            variables[variable["name"]] = (
                fields[given["fieldRef"]["fieldPath"]] if given else variable["value"]
            )
        return variables

    def volumes(self, directory: Path, account: ServiceAccountVolume) -> list[Document]:
        """The volumes for `_pod.py`: an emptyDir is a folder in `directory`, the ServiceAccount's volume is at the kubelet's path."""
        kinds = {volume["name"]: volume for volume in self.template.get("volumes", ())}
        found = []
        for mount in self.spec.get("volumeMounts", ()):
            assert "emptyDir" in kinds[mount["name"]], mount
            source = directory / mount["name"]
            source.mkdir(parents=True, exist_ok=True)
            writable = not mount.get("readOnly", False)
            found.append(volume(source, mount["mountPath"], writable=writable))
        if self.template.get("automountServiceAccountToken", True):
            found.append(volume(account.directory, SERVICE_ACCOUNT, writable=False))
        return found

    def process(
        self,
        program: Path,
        directory: Path,
        *,
        account: ServiceAccountVolume,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str],
    ) -> Process:
        """`program` with the container's arguments, then `arguments`; logs and volumes are in `directory`. Blocks."""
        user, group = self.user
        volumes = self.volumes(directory, account)
        command = [str(program), *self.spec["args"], *arguments]
        return Process(
            "wasmer",
            confined(command, directory, user=user, group=group, volumes=volumes),
            log=directory / "wasmer.log",
            env={**environment, **self.environment},
            cwd=Path("/"),
        )

    async def run(
        self,
        program: Path,
        directory: Path,
        *,
        account: ServiceAccountVolume,
        environment: Mapping[str, str],
    ) -> tuple[int, str]:
        """Run `program` with the container's arguments to its end: exit status and output. Raises TimeoutError after 2 min."""

        def command() -> list[str | Path]:
            user, group = self.user
            volumes = self.volumes(directory, account)
            words = [str(program), *self.spec["args"]]
            return confined(words, directory, user=user, group=group, volumes=volumes)

        running = await asyncio.create_subprocess_exec(
            *await asyncio.to_thread(command),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**environment, **self.environment},
            cwd="/",
        )
        async with asyncio.timeout(120):
            printed, _ = await running.communicate()
        return running.returncode or 0, printed.decode()


async def run_confined(
    command: Sequence[str], directory: Path, *, user: int, group: int, volumes: Sequence[Document]
) -> str:
    """The output of a short program that is confined like a container."""
    words = await asyncio.to_thread(
        lambda: confined(command, directory, user=user, group=group, volumes=volumes)
    )
    running = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        printed, _ = await running.communicate()
    return printed.decode()


def confined(
    command: Sequence[str],
    directory: Path,
    *,
    user: int,
    group: int,
    volumes: Sequence[Document],
    inotify: int | None = None,
) -> list[str | Path]:
    """A command that runs `command` confined like a container; its specification is written into `directory`. Blocks.

    `inotify` limits its number of inotify instances.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "container.json"
    specification = {"user": user, "group": group, "volumes": volumes, "command": list(command)}
    if inotify is not None:
        specification["inotify"] = inotify
    file.write_text(json.dumps(specification))
    return [sys.executable, "-S", "-E", _CONFINE, file]


def volume(source: Path, target: str, *, writable: bool) -> Document:
    """For `confined`: the folder `source` at the path `target`."""
    return {"source": os.fspath(source), "target": target, "writable": writable}


@dataclass(slots=True)
class Probed:
    """Results of the probes so far."""

    started: float | None = None
    """Seconds until the startup probe was answered."""
    ready: bool = False
    killed: str = ""
    """The reason for which the kubelet would have killed it; empty if it would not."""
    probes: dict[str, int] = field(default_factory=dict)


@asynccontextmanager
async def probed(container: Container, ports: Mapping[str, str]) -> AsyncIterator[Probed]:
    """Run the container's probes as the kubelet does, until the context ends. `ports`: name to `address:port`."""
    found = Probed()
    task = asyncio.create_task(_probe(container, ports, found), name="probes")
    try:
        yield found
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _probe(container: Container, ports: Mapping[str, str], found: Probed) -> None:
    begun = time.monotonic()
    if "startupProbe" in container.spec:
        await _ask(container, "startupProbe", ports, found, until_answered=True)
    if found.killed:
        return
    found.started = time.monotonic() - begun
    async with asyncio.TaskGroup() as group:
        group.create_task(_ask(container, "livenessProbe", ports, found))
        group.create_task(_ask(container, "readinessProbe", ports, found))


async def _ask(
    container: Container,
    name: ProbeName,
    ports: Mapping[str, str],
    found: Probed,
    *,
    until_answered: bool = False,
) -> None:
    probe = container.spec[name]
    failures = 0
    while True:
        found.probes[name] = found.probes.get(name, 0) + 1
        good = await _good(probe, ports)
        failures = 0 if good else failures + 1
        failed = failures >= probe.get("failureThreshold", 3)
        if name == "readinessProbe":
            found.ready = good or (found.ready and not failed)
        elif failed:
            found.killed = f"{name} failed {failures} times"
            return
        if good and until_answered:
            return
        await asyncio.sleep(probe.get("periodSeconds", 10))


async def _good(probe: Document, ports: Mapping[str, str]) -> bool:
    http_get = probe["httpGet"]
    url = f"http://{ports[http_get['port']]}{http_get['path']}"
    try:
        timeout = probe.get("timeoutSeconds", 1)
        answer = await wire.get(url, headers=_PROBE_HEADERS, timeout=timeout)
    except OSError:
        return False
    return 200 <= answer.status < 400
