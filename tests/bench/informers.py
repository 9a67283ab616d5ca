"""`python -m tests.bench.informers WHO --kubeconfig FILE --pods N [--events M] [--namespace NS]`: watches Pods, and measures this process.

WHO: `ours` and `ours-paged` (autowasm.kube, streaming list or pages, with the matcher over it), `model` and `dict`
(kubernetes_asyncio's list and Watch, to models or to dicts), `kopf` (an operator with an index over Pods). Each keeps the
labels of all Pods. One JSON line at the end.
"""

import argparse
import asyncio
import gc
import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.rivals import follow_with_kopf, follow_with_kubernetes_asyncio


class Meter:
    """Seconds, processor seconds and memory since it was made."""

    def __init__(self) -> None:
        gc.collect()
        self._resident = resident()
        self._begun, self._cpu = time.perf_counter(), time.process_time()

    def read(self, **more: Any) -> dict[str, Any]:
        """The printed result. `kept`: the increase of resident bytes, after garbage collection."""
        seconds, cpu = time.perf_counter() - self._begun, time.process_time() - self._cpu
        gc.collect()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "seconds": seconds,
            "cpu": cpu,
            "kept": resident() - self._resident,
            "peak": peak - self._resident,
            **more,
        }


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Watch Pods like the controller."""
    from autowasm.controller.pods.podmatching import Pod, PodMatcher, pod_codec  # noqa: PLC0415
    from autowasm.kube.client import KubeClient  # noqa: PLC0415
    from autowasm.kube.informer import Informer  # noqa: PLC0415
    from autowasm.kube.listwatch import ListWatch  # noqa: PLC0415
    from autowasm.kube.resources import PODS, ObjectKey  # noqa: PLC0415
    from autowasm.net.pools import Pools  # noqa: PLC0415
    from autowasm.performance.eventloop import LoopTiming, TimedLoop  # noqa: PLC0415

    matcher, heard, enough = PodMatcher(), 0, asyncio.Event()
    wanted = arguments.events or arguments.pods

    class Handler:
        def on_add(self, _key: ObjectKey, new: Pod, /, *, initial: bool) -> None:
            self.hear(None, new)

        def on_update(self, _key: ObjectKey, old: Pod, new: Pod, /) -> None:
            self.hear(old, new)

        def on_delete(self, _key: ObjectKey, old: Pod, /) -> None:
            self.hear(old, None)

        def hear(self, old: Pod | None, new: Pod | None) -> None:
            nonlocal heard
            matcher.pod_changed(old, new)
            heard += 1
            if heard == wanted:
                enough.set()

    loop = asyncio.get_running_loop()
    assert isinstance(loop, TimedLoop)
    with Pools(transfers=1) as pools:
        async with (
            KubeClient(kubeconfig=arguments.kubeconfig, pools=pools, user_agent="bench") as client,
            asyncio.TaskGroup() as tasks,
        ):
            pods = ListWatch(client, PODS, pod_codec(), namespace=arguments.namespace or None)
            informer = Informer(
                "pods",
                list_watch=pods,
                limits=client.limits,
                streaming=arguments.who != "ours-paged",
            )
            informer.add_handler(Handler())
            await client.request("GET", "/version")  # connected, everything imported
            await asyncio.sleep(0.2)
            meter = Meter()
            await asyncio.sleep(
                0
            )  # the garbage collection is a long iteration that is not the informer's
            loop.timing.iterations = iterations = LoopTiming()
            running = tasks.create_task(informer.run(), name="informer")
            await enough.wait()
            longest, counts = 1000 * iterations.longest, list(iterations.counts)
            found = meter.read(
                longest=longest, iterations=counts, pods=len(informer.store), heard=heard
            )
            running.cancel()
    return found


async def rivals(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same work, by the rivals."""
    wanted = arguments.events or arguments.pods
    if arguments.who == "kopf":
        return await follow_with_kopf(arguments.kubeconfig, arguments.namespace, wanted, Meter)
    return await follow_with_kubernetes_asyncio(
        arguments.kubeconfig,
        arguments.namespace,
        wanted,
        Meter,
        models=arguments.who == "model",
        watch=bool(arguments.events),
    )


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=("ours", "ours-paged", "model", "dict", "kopf"))
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--pods", type=int, default=0)
    parser.add_argument("--events", type=int, default=0)
    parser.add_argument("--namespace", default="")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if arguments.who.startswith("ours"):
        from autowasm.performance import eventloop  # noqa: PLC0415
        from autowasm.performance.eventloop import TimedLoop  # noqa: PLC0415

        eventloop.tune_gc()
        with asyncio.Runner(loop_factory=TimedLoop) as runner:
            found = runner.run(ours(arguments))
    else:
        found = asyncio.run(rivals(arguments))
    print(json.dumps(found))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
