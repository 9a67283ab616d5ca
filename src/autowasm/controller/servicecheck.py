"""PublishedService: whether the Service that every EnvoyFilter names as the source of modules exists (ADR 33).

A rename (kustomize's `namePrefix`, a copied manifest) leaves the configured name without a Service. istiod makes no cluster for a
Service that does not exist, so a sidecar with a new EnvoyFilter gets no module and answers 503. Invariants: an unknown state (no
permission, no answer of the API server) blocks nothing; a Service that existed before must be missing in two checks; missing
endpoints are only reported, because a replica may have to publish before it becomes an endpoint.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from prometheus_client import Gauge

from autowasm.errors import AutoWasmError
from autowasm.kube.client import KubeClient
from autowasm.kube.errors import ApiError, Forbidden, NotFound
from autowasm.kube.resources import ENDPOINTS, SERVICES, ObjectKey
from autowasm.reasons import Reason
from autowasm.settings import EnvoyFetch

_log = structlog.get_logger(__name__)

CHECK_INTERVAL: Final = 30.0
"""Seconds between two checks while the Service is usable: each replica sends one small request."""
RECHECK_INTERVAL: Final = 5.0
"""The same after a check that found a problem."""
STARTING: Final = 60.0
"""Seconds without endpoints before a report: starting replicas have none yet."""


@dataclass(frozen=True, slots=True)
class ServiceVerdict:
    """The result of a check. Without a `reason`: usable, or unknown with the cause in `text`."""

    reason: Reason | None = None
    text: str = ""

    @property
    def holds(self) -> bool:
        """Whether the verdict blocks new publications."""
        return self.reason in {Reason.SERVICE_NOT_FOUND, Reason.SERVICE_PORT_MISSING}


GOOD: Final = ServiceVerdict()


class PublishedService:
    """`run` it in a TaskGroup, after a first `check`. `report` receives the problem; empty: no problem."""

    def __init__(
        self,
        client: KubeClient,
        *,
        envoy: EnvoyFetch,
        report: Callable[[str], None],
        problem: Gauge,
    ) -> None:
        """The metric `problem` has one label, the reason."""
        self._client = client
        self._key = ObjectKey(envoy.service_namespace, envoy.service_name)
        self._port = envoy.service_port
        self._report = report
        self._gauge = problem
        self._verdict: ServiceVerdict | None = None
        self._suspected: ServiceVerdict | None = None
        self._empty_since: float | None = None
        for reason in (
            Reason.SERVICE_NOT_FOUND,
            Reason.SERVICE_PORT_MISSING,
            Reason.SERVICE_WITHOUT_ENDPOINTS,
        ):
            problem.labels(reason).set(0)

    def problem(self) -> AutoWasmError | None:
        """Why nothing new may be published now; None: publication is allowed."""
        verdict = self._verdict
        if verdict is None or not verdict.holds:
            return None
        return AutoWasmError(
            f"{verdict.text}, so sidecars cannot fetch the module: the operator of wasmer must create or correct it, or set "
            "--service-name, --service-namespace and --service-port",
            reason=verdict.reason,
        )

    async def run(self, changed: Callable[[], None]) -> None:
        """Check at intervals until cancelled; calls `changed` when `problem` begins or ends."""
        while True:
            doubtful = self._suspected is not None or self._verdict is None or self._verdict.reason
            await asyncio.sleep(RECHECK_INTERVAL if doubtful else CHECK_INTERVAL)
            held = self._verdict is not None and self._verdict.holds
            await self.check()
            if held != (self._verdict is not None and self._verdict.holds):
                changed()

    async def check(self) -> None:
        """Check the Service at the API server. Raises no ApiError."""
        try:
            found = await self._found()
        except Forbidden:
            text = f"cannot check Service {self._key}: wasmer is not allowed to `get` it; apply wasmer's manifests of this version"
            found = ServiceVerdict(text=text)
        except ApiError as error:
            _log.debug("service not checked", service=str(self._key), error=str(error))
            return
        suspected, self._suspected = self._suspected, None
        # helm and kubectl replace a Service within a second; at start-up there is no earlier state.
        begins = found.holds and self._verdict is not None and not self._verdict.holds
        if begins and (suspected is None or suspected.reason != found.reason):
            self._suspected = found
            return
        if found != self._verdict:
            self._verdict = found
            self._report_verdict(found)

    async def _found(self) -> ServiceVerdict:
        try:
            service = await self._client.get(SERVICES, self._key)
        except NotFound:
            return ServiceVerdict(Reason.SERVICE_NOT_FOUND, f"Service {self._key} does not exist")
        ports = (service.get("spec") or {}).get("ports") or ()
        if not any(_is_tcp(one, self._port) for one in ports):
            return ServiceVerdict(
                Reason.SERVICE_PORT_MISSING, f"Service {self._key} has no TCP port {self._port}"
            )
        if await self._has_endpoints():
            self._empty_since = None
            return GOOD
        now = asyncio.get_running_loop().time()
        if self._empty_since is None:
            self._empty_since = now
        if now - self._empty_since < STARTING:
            return self._verdict if self._verdict is not None and not self._verdict.holds else GOOD
        text = f"Service {self._key} has no ready endpoint, so sidecars cannot fetch modules; compare its selector with the labels of wasmer's Pods"
        return ServiceVerdict(Reason.SERVICE_WITHOUT_ENDPOINTS, text)

    async def _has_endpoints(self) -> bool:
        """True also if wasmer may not read the endpoints."""
        try:
            endpoints = await self._client.get(ENDPOINTS, self._key)
        except NotFound:
            return False
        except Forbidden:
            return True
        return any(one.get("addresses") for one in endpoints.get("subsets") or ())

    def _report_verdict(self, verdict: ServiceVerdict) -> None:
        self._report(verdict.text)
        for reason in (
            Reason.SERVICE_NOT_FOUND,
            Reason.SERVICE_PORT_MISSING,
            Reason.SERVICE_WITHOUT_ENDPOINTS,
        ):
            self._gauge.labels(reason).set(reason == verdict.reason)
        if verdict.reason:
            _log.error("service not usable", reason=verdict.reason, problem=verdict.text)
        elif verdict.text:
            _log.warning("service not checked", problem=verdict.text)
        else:
            _log.info("service found", service=str(self._key), port=self._port)


def _is_tcp(port: Mapping[str, Any], number: int) -> bool:
    return port.get("port") == number and port.get("protocol", "TCP") == "TCP"
