"""`make demo ARGS=--mesh`: staged rollouts on a real control plane without a cluster, explained for newcomers.

Starts etcd, kube-apiserver, istiod, a registry, `wasmer controller` with the shipped RBAC, and four Pods: objects at the API server,
each with a real Envoy that a real istio-agent started. Then uses kubectl and wasmc like the owner of a filter. Not a test, but
nothing here is simulated: every answer shown was received. Its processes end with it.
"""

import asyncio
import base64
import re
import tempfile
import textwrap
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.demo.narration import compiled, follow, get_parts, run, say, show, shown_command, step
from tests.parts import installation, wasmer, wire
from tests.parts.clients import Client
from tests.parts.load import Load, LoadReport
from tests.parts.mesh import composed
from tests.parts.rollouts import StagedMesh, StagedSidecar

FILTER = Path(__file__).parents[2] / "examples/hello.wat"
PODS = 4
_CONFIGURE = "(param $context i32) (param $configuration_length i32) (result i32)\n    (drop"
_REFUSES = """(param $context i32) (param $configuration_length i32) (result i32)
    (if (call $get_property (i32.const 128) (i32.const 20) (i32.const 192) (i32.const 196))
      (then (drop (call $log (i32.const 4) (i32.const 160) (i32.const 23)))
            (return (i32.const 0))))
    (drop"""
_MEMORY = '(memory (export "memory") 1)'
_PROPERTY = """(import "env" "proxy_get_property"
    (func $get_property (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 128) "node\\00metadata\\00REGION")
  (data (i32.const 160) "this mesh has no REGION")"""


def bad(source: str) -> str:
    """The filter, changed so that it refuses to start in a sidecar whose node metadata have no REGION."""
    if source.count(_CONFIGURE) != 1 or source.count(_MEMORY) != 1:
        raise AssertionError(f"{FILTER} has another form than the demo expects")
    return source.replace(_CONFIGURE, _REFUSES).replace(_MEMORY, _PROPERTY)


@dataclass(slots=True)
class MeshDemo:
    """The running parts, and the clients of the reader."""

    folder: Path
    mesh: StagedMesh
    kubectl: Client
    wasmc: Client

    @property
    def pods(self) -> list[StagedSidecar]:
        """The Pods that the AutoWasm selects."""
        return self.mesh.matched

    def document(self, tag: str) -> dict[str, Any]:
        """The object that a user writes."""
        return {
            "apiVersion": "wasm.tcm.io/v1alpha1",
            "kind": "AutoWasm",
            "metadata": {"name": "hello"},
            "spec": {
                "filter": {
                    "source": {
                        "registry": {"image": f"{self.mesh.registry.host}/demo/hello:{tag}"}
                    },
                    "failStrategy": "FAIL_OPEN",
                },
                "secret": installation.PULL_SECRET,
                "selector": {"matchLabels": {"app": "hello"}},
                "rollout": {"steps": [1, "50%"], "pause": "4s", "deadline": "2m"},
            },
        }


async def apply(demo: MeshDemo, tag: str) -> None:
    """`kubectl apply` of the object."""
    text = yaml.safe_dump(demo.document(tag), sort_keys=False)
    await run(demo.kubectl, "apply", "-f", "-", stdin=text)


async def push(demo: MeshDemo, tag: str, source: str) -> None:
    """Compile and push a version."""
    await compiled(demo.folder / f"{tag}.wasm", source)
    image = f"{demo.mesh.registry.host}/demo/hello:{tag}"
    await run(demo.wasmc, "push", image, "-f", f"{tag}.wasm", "-q")


async def ask_all(demo: MeshDemo) -> dict[str, str]:
    """Show and return the header `hello` of an answer of each Pod."""
    found = {}
    for pod in demo.pods:
        answer = await wire.request("GET", f"http://{pod.host}/")
        found[pod.name] = answer.headers.get("hello", "(none)")
        show(f"{pod.name}  HTTP {answer.status}  hello: {found[pod.name]}")
    return found


async def follow_rollout(demo: MeshDemo) -> int:
    """`wasmc rollout status -w`, live."""
    status = await follow(demo.wasmc, "rollout", "status", "hello", "-w", "--timeout", "4m")
    print(f"   (exit status {status})", flush=True)
    return status


@asynccontextmanager
async def load(demo: MeshDemo) -> AsyncIterator[dict[str, LoadReport]]:
    """Send requests to all Pods, without retries; yields the reports by Pod."""
    async with AsyncExitStack() as stack:
        reports = {}
        for pod in demo.pods:
            steady = Load(pod.host, header="hello", pause=0.02).steady()
            reports[pod.name] = await stack.enter_async_context(steady)
        yield reports


def told(reports: dict[str, LoadReport]) -> int:
    """Show the results of the load. Returns the number of requests without a 200."""
    failed = 0
    for name, report in reports.items():
        good = report.by_status[200]
        failed += report.total - good
        values = ", ".join(
            f"{count} × {f'hello: {value}' if value else 'without the filter'}"
            for value, count in report.by_value.items()
        )
        show(f"{name}  {report.total} requests, {report.total - good} failed ({values})")
    return failed


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[MeshDemo]:
    """Start all parts."""
    async with composed(folder, authority=True) as found:
        mesh = StagedMesh(**found.parts)
        print(
            "   etcd, kube-apiserver, istiod, registry and wasmer run; now the Pods ...", flush=True
        )
        names = [f"hello-{number}" for number in range(PODS)]
        mesh.matched = [
            *await asyncio.gather(*(mesh.add_staged(name, app="hello") for name in names))
        ]
        login = installation.pull_secret(mesh.registry.host)["data"][".dockerconfigjson"]
        home = folder / "home"
        client = wasmer.wasmc(home, KUBECONFIG=str(mesh.cluster.kubeconfig))
        await asyncio.to_thread(_write_login, home, login)
        kubectl = Client(mesh.kubectl.program, home, mesh.kubectl.environment)
        yield MeshDemo(home, mesh, kubectl, client)


def _write_login(home: Path, encoded: str) -> None:
    (home / ".docker/config.json").write_bytes(base64.b64decode(encoded))


async def show_all(demo: MeshDemo) -> None:
    """The story, step by step."""
    source = FILTER.read_text()
    step("A control plane with four Pods")
    columns = "custom-columns=NAME:.metadata.name,IP:.status.podIP,LABELS:.metadata.labels"
    await run(demo.kubectl, "get", "pods", "-l", "app=hello", "-o", columns)
    say(
        "Each Pod is an Envoy in front of a service, started by Istio's agent and configured by istiod."
    )
    await ask_all(demo)

    step("Push a filter, and apply an AutoWasm that reaches the Pods in steps")
    await push(demo, "v1", source)
    show(yaml.safe_dump(demo.document("v1"), sort_keys=False))
    await apply(demo, "v1")
    say(
        "First one Pod, then half of them, then all. wasmer continues when Envoy itself shows that the filter runs:"
    )
    _expect(await follow_rollout(demo), 0)
    _expect_values(await ask_all(demo), "world")

    step("Roll out a second version while requests keep coming")
    await push(demo, "v2", source.replace('"world"', '"earth"'))
    async with load(demo) as reports:
        await apply(demo, "v2")
        _expect(await follow_rollout(demo), 0)
        await asyncio.gather(
            *(Load(pod.host, header="hello").wait_for("earth") for pod in demo.pods)
        )
    say("The load, which never retries:")
    if told(reports):
        raise SystemExit("This is not the expected result.")

    step("Roll out a bad version")
    say(
        """The third version reads REGION from the metadata of its sidecar, and refuses to start without it. It did start where its
        author tested it. Here no Pod has a REGION, and only the Envoys can know that."""
    )
    await push(demo, "v3", bad(source.replace('"world"', '"mars!"')))
    versions = {pod.name: await pod.listener_version() for pod in demo.pods}
    async with load(demo) as reports:
        await apply(demo, "v3")
        _expect(await follow_rollout(demo), 1)
        await asyncio.gather(
            *(Load(pod.host, header="hello").wait_for("earth") for pod in demo.pods)
        )
    say(
        """The rollout stopped at the first Pod, which has the previous filter again. No request failed: with
        failStrategy FAIL_OPEN, requests pass if a filter cannot run."""
    )
    failed = told(reports)
    changed = [pod.name for pod in demo.pods if await pod.listener_version() != versions[pod.name]]
    say(
        f"Envoy's listeners changed in {', '.join(changed)} only. All Pods have the second version:"
    )
    _expect_values(await ask_all(demo), "earth")
    if failed or len(changed) != 1:
        raise SystemExit("This is not the expected result.")

    step("What happened, and what to do")
    await run(demo.kubectl, "get", "autowasm", "hello")
    await explain(demo)
    await run(demo.wasmc, "rollout", "history", "hello")
    say(
        "wasmer does not try this version again by itself; a change of the spec starts the next rollout."
    )


async def explain(demo: MeshDemo) -> None:
    """The findings of `wasmc explain` on the object, its module's start and the rollout; the others need a cluster with nodes."""
    shown_command("wasmc", ["explain", "hello"])
    done = await demo.wasmc.run("explain", "hello", "--no-source", check=False)
    findings = re.split(r"\n(?=\w)", done.stdout)
    wanted = [
        one for one in findings if re.match(r"\w+ +(AutoWasm|Rollout) ", one) or "[Starts]" in one
    ]
    show("\n".join([*wanted, "..."]))
    if not any("Aborted" in one and "Rollout" in one for one in wanted):
        raise SystemExit(f"wasmc explain does not report the rollout.\n{done.stdout}{done.stderr}")


def _expect(status: int, wanted: int) -> None:
    if status != wanted:
        raise SystemExit(f"The rollout should have ended with {wanted}, not {status}.")


def _expect_values(found: dict[str, str], wanted: str) -> None:
    if set(found.values()) != {wanted}:
        raise SystemExit(f"Not all Pods have hello: {wanted}.")


def what_next(demo: MeshDemo, *, kept: bool) -> None:
    """Where to go from here."""
    step("What to try next")
    if not kept:
        say("make demo ARGS='--mesh --keep' leaves everything running until Ctrl-C.")
    else:
        wasmc, kubectl = demo.wasmc.program, demo.kubectl.program
        print(
            textwrap.dedent(f"""\
            export KUBECONFIG={demo.mesh.cluster.kubeconfig} DOCKER_CONFIG={demo.folder}/.docker
            {wasmc} rollout retry hello && {wasmc} rollout status hello -w
            {wasmc} rollout promote hello      all Pods get the bad version
            {kubectl} edit autowasm hello      another image, steps, pause
            {kubectl} get events
            curl -i http://{demo.pods[0].host}/""")
        )
    say("docs/how-to/roll-out-carefully.md explains staged rollouts.")


async def main(*, keep: bool) -> None:
    """Set up, run the tour, clean up."""
    say(
        """A changed filter reaches the Pods of a mesh in steps, and the next step begins only if it runs. Getting the real parts (once; ten
        minutes on two cores) ..."""
    )
    await get_parts("demo-mesh")
    with tempfile.TemporaryDirectory(prefix="autowasm-demo-") as name:
        async with started(Path(name)) as demo:
            await show_all(demo)
            what_next(demo, kept=keep)
            if keep:
                print("\nRunning. Ctrl-C ends it.", flush=True)
                await asyncio.Event().wait()
    print("\nAll processes of the demo have ended.")
