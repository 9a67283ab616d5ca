"""A real Prometheus that scrapes the given targets every second, with the given rules.

Not Alertmanager: alerts are read from Prometheus itself. Invariant: `scrape` may be called at any time, and takes effect within
a second.
"""

import asyncio
import json
import os
import signal
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.parts import ports, provision, wire
from tests.parts.process import Process


@dataclass(slots=True)
class Prometheus:
    """A running Prometheus. Times are seconds since the epoch."""

    process: Process
    directory: Path
    host: str
    targets: dict[str, dict[str, str]] = field(default_factory=dict)
    """By job and host: the path to scrape."""

    async def ready(self) -> bool:
        """The answer of `/-/ready`."""
        return (await wire.get(f"http://{self.host}/-/ready")).status == 200

    def write(self) -> None:
        """The current configuration."""
        jobs = [
            {
                "job_name": job,
                "metrics_path": path,
                "static_configs": [{"targets": [host]}],
                # Plain Envoy has no Istio filter; its statistics have the same labels and another name.
                "metric_relabel_configs": [
                    {
                        "source_labels": ["__name__"],
                        "regex": "envoy_access_(istio_requests)(?:_total)?",
                        "target_label": "__name__",
                        "replacement": "${1}_total",
                    }
                ],
            }
            for job, hosts in self.targets.items()
            for host, path in hosts.items()
        ]
        document = {
            "global": {
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "evaluation_interval": "1s",
            },
            "rule_files": ["rules.yaml"],
            "scrape_configs": jobs,
        }
        (self.directory / "prometheus.yaml").write_text(yaml.safe_dump(document))

    async def scrape(self, job: str, host: str, *, path: str = "/metrics") -> None:
        """Scrape this target, too."""
        self.targets[job] = {host: path}
        await asyncio.to_thread(self.write)
        os.kill(self.process.pid, signal.SIGHUP)

    async def forget(self, job: str) -> None:
        """Stop scraping this target."""
        del self.targets[job]
        await asyncio.to_thread(self.write)
        os.kill(self.process.pid, signal.SIGHUP)

    async def request(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        """`data` of an answer of the API. Raises AssertionError with the API's error."""
        query = urllib.parse.urlencode(parameters or {})
        answer = await wire.get(f"http://{self.host}/api/v1/{path}?{query}", timeout=30)
        said = json.loads(answer.body)
        assert said["status"] == "success", said
        return said["data"]

    async def value(self, expression: str) -> float | None:
        """The largest value now; None if there is no value."""
        found = (await self.request("query", {"query": expression}))["result"]
        return max((float(one["value"][1]) for one in found), default=None)

    async def series(self, expression: str, begin: float, end: float, step: float) -> list[Any]:
        """The series at a time, with their values."""
        span = {"start": str(begin), "end": str(end), "step": str(step)}
        result: list[Any] = (await self.request("query_range", {"query": expression, **span}))[
            "result"
        ]
        return result

    async def firing(self) -> set[str]:
        """Alerts that are firing."""
        alerts = (await self.request("alerts"))["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    async def wait_firing(self, *names: str, timeout: float = 150) -> None:
        """Return once all have been firing. Raises TimeoutError."""
        missing = set(names)
        try:
            async with asyncio.timeout(timeout):
                while missing := missing - await self.firing():
                    await asyncio.sleep(0.5)
        except TimeoutError as error:
            raise TimeoutError(f"{missing} did not fire within {timeout:g} s") from error

    async def wait_resolved(self, *names: str, timeout: float = 150) -> None:
        """Return once none of them fires. Raises TimeoutError."""
        still: set[str] = set(names)
        try:
            async with asyncio.timeout(timeout):
                while still := set(names) & await self.firing():
                    await asyncio.sleep(0.5)
        except TimeoutError as error:
            raise TimeoutError(f"{still} still fire after {timeout:g} s") from error


@asynccontextmanager
async def prometheus(directory: Path, *, rules: str) -> AsyncIterator[Prometheus]:
    """Run it over `directory` with these rules (YAML) until the context ends."""
    program = await asyncio.to_thread(provision.prometheus)
    host = f"{ports.LOOPBACK}:{ports.free_port()}"
    await asyncio.to_thread(directory.mkdir, parents=True)
    await asyncio.to_thread((directory / "rules.yaml").write_text, rules)
    command: list[str | Path] = [program, "--config.file", directory / "prometheus.yaml"]
    command += ["--storage.tsdb.path", directory / "data", "--web.listen-address", host]
    process = Process("prometheus", command, log=directory / "prometheus.log", cwd=directory)
    server = Prometheus(process, directory, host)
    await asyncio.to_thread(server.write)
    async with process:
        await process.start(ready=server.ready, timeout=60)
        yield server
