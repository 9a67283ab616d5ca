"""Step Ports: each of `applyPorts` has an inbound HTTP listener.

An inbound listener has the Pod's port, which is a Service's targetPort. Source: Istio's rules for the protocol of a Service
port (appProtocol, or the name before the dash; without either, Envoy detects it from the bytes).
"""

from collections.abc import Iterator
from typing import Final

from autowasm.api.patches import TUNNEL_PORT
from autowasm.api.v1alpha1 import PatchContext
from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step
from autowasm.explain.objects import Pod, Service, ServicePort

_finding: Final = Reporter(Step.PORTS)
_PATH: Final = "spec.filter.applyPorts"
_HTTP: Final = frozenset({"http", "http2", "grpc", "grpc-web", "kubernetes.io/h2c"})
_OTHER: Final = frozenset(
    {"tcp", "tls", "https", "mongo", "mysql", "redis", "udp", "http3", "kubernetes.io/wss"}
)
_EXCLUDED: Final = "traffic.sidecar.istio.io/excludeInboundPorts"
_INCLUDED: Final = "traffic.sidecar.istio.io/includeInboundPorts"


def served(facts: Facts) -> Iterator[Finding]:
    """Each port is the target of a Service, with HTTP as its protocol."""
    autowasm = facts.autowasm
    if autowasm is None or autowasm.spec.filter.context is not PatchContext.SIDECAR_INBOUND:
        return
    pods = tuple(pod for pod in facts.injected if not pod.is_gateway)
    if not pods or not facts.has_read("services"):
        return
    for index, port in enumerate(autowasm.spec.filter.apply_ports or ()):
        yield from _port(facts, pods, port, f"{_PATH}[{index}]")


def _port(facts: Facts, pods: tuple[Pod, ...], port: int, path: str) -> Iterator[Finding]:
    behind = [
        (service, one, pod)
        for pod in pods
        for service in facts.services
        if service.selects(pod)
        for one in service.ports
    ]
    leading = [found for found in behind if _target(found[1], found[2]) == port]
    if not leading:
        yield _no_service(facts, pods, port, path, behind)
        return
    reached = {pod.where for _, _, pod in leading}
    if missing := len({pod.where for pod in pods} - reached):
        what = f"no Service targets port {port} of {missing} of {len(pods)} Pods: they do not have the filter"
        yield _finding(
            Level.WARNING,
            "NoServicePort",
            facts.name,
            what,
            "add a Service for these Pods",
            field=path,
        )
    names = sorted({f"{service.where}:{one.port}" for service, one, _ in leading})
    other = sorted(
        {
            f"Service {service.where} port {one.name or one.port}"
            for service, one, _ in leading
            if _protocol(one) in _OTHER
        }
    )
    if other:
        what = f"{', '.join(other[:3])} is not HTTP for Istio, so port {port} has no HTTP filters"
        remedy = "if it serves HTTP, name the port http-… or set appProtocol: http"
        yield _finding(Level.ERROR, "NotHttp", facts.name, what, remedy, field=path)
    elif any(_protocol(one) == "" for _, one, _ in leading):
        what = f"port {port} is reached through {', '.join(names[:3])}, which does not declare its protocol: Istio detects it from the traffic"
        remedy = "name the port http-… to declare the protocol"
        yield _finding(Level.NOTE, "ProtocolGuessed", facts.name, what, remedy, field=path)
    else:
        what = f"port {port} is reached through {', '.join(names[:3])}"
        yield _finding(Level.OK, "Port", facts.name, what, field=path)


def _no_service(
    facts: Facts,
    pods: tuple[Pod, ...],
    port: int,
    path: str,
    behind: list[tuple[Service, ServicePort, Pod]],
) -> Finding:
    """The error for a port that no Service targets, with the likely cause."""
    for service, one, pod in behind:
        target = _target(one, pod)
        if one.port == port and target is not None:
            what = f"{port} is the port of Service {service.where}; its Pods and their sidecars listen on {target}"
            return _finding(
                Level.ERROR,
                "ServicePortNamed",
                facts.name,
                what,
                f"use {target} instead of {port}",
                field=path,
            )
    exposed = sorted({one.container_port for pod in pods for one in pod.ports})
    known = sorted({target for _, one, pod in behind if (target := _target(one, pod)) is not None})
    what = f"no Service targets port {port} of the Pods, so sidecars have no listener for it"
    what += (
        f"; Services target {_listed(known)}"
        if known
        else "; no Service selects the Pods"
        if not behind
        else ""
    )
    if exposed and port not in exposed:
        what += f"; containers expose {_listed(exposed)}"
    remedy = "use the Pod's port (a Service's targetPort), or create a Service for it"
    return _finding(Level.ERROR, "NoServicePort", facts.name, what, remedy, field=path)


def exposed(facts: Facts) -> Iterator[Finding]:
    """A port that no container declares: often a mistake for another port."""
    autowasm = facts.autowasm
    if autowasm is None or autowasm.spec.filter.context is not PatchContext.SIDECAR_INBOUND:
        return
    declared = {one.container_port for pod in facts.injected for one in pod.ports}
    if not declared:
        return
    for index, port in enumerate(autowasm.spec.filter.apply_ports or ()):
        if port not in declared:
            what = f"no container exposes port {port}; they expose {_listed(sorted(declared))}"
            remedy = (
                "correct the port, or add it to the container's ports if a process listens on it"
            )
            yield _finding(
                Level.WARNING, "NotExposed", facts.name, what, remedy, field=f"{_PATH}[{index}]"
            )


def captured(facts: Facts) -> Iterator[Finding]:
    """Ports whose traffic bypasses the sidecar."""
    ports = facts.autowasm.spec.filter.apply_ports if facts.autowasm is not None else None
    for pod in facts.injected:
        excluded = _numbers(pod.annotations.get(_EXCLUDED, ""))
        included = pod.annotations.get(_INCLUDED, "*").strip()
        causes = {
            _EXCLUDED: [port for port in ports or () if port in excluded],
            _INCLUDED: []
            if included == "*"
            else [port for port in ports or () if port not in _numbers(included)],
        }
        past = list(dict.fromkeys(port for each in causes.values() for port in each))
        if past:
            what = f"traffic to port {_listed(past)} of Pod {pod.where} bypasses its sidecar"
            names = " and ".join(name for name, each in causes.items() if each)
            remedy = f"change the Pod's annotation {names}"
            yield _finding(Level.ERROR, "NotCaptured", facts.name, what, remedy, field=_PATH)
            return


def every_port(facts: Facts) -> Iterator[Finding]:
    """A note if `applyPorts` is absent."""
    autowasm = facts.autowasm
    if autowasm is not None and autowasm.spec.filter.apply_ports is None and facts.pods:
        what = "is not set: the filter applies to every HTTP port of the Pods"
        yield _finding(Level.NOTE, "EveryPort", facts.name, what, field=_PATH)


def tunnel(facts: Facts) -> Iterator[Finding]:
    """Pods in a mesh with the ambient profile have a second inbound listener."""
    autowasm = facts.autowasm
    if autowasm is None or autowasm.spec.filter.context is not PatchContext.SIDECAR_INBOUND:
        return
    pods = [pod for pod in facts.injected if pod.has_tunnel and not pod.is_gateway]
    if not pods:
        return
    what = (
        f"{len(pods)} of {len(facts.injected)} Pods receive requests of ambient workloads through a tunnel "
        "(label networking.istio.io/tunnel: http): the filter runs on those requests, not on the tunnel's CONNECT"
    )
    yield _finding(Level.NOTE, "Tunnel", facts.name, what, field=_PATH)
    if TUNNEL_PORT in (autowasm.spec.filter.apply_ports or ()):
        what = f"port {TUNNEL_PORT} is the tunnel itself, where the filter is not inserted"
        remedy = "list the ports of the workload; the filter also handles requests that reach them through the tunnel"
        yield _finding(Level.WARNING, "TunnelPort", facts.name, what, remedy, field=_PATH)


def _target(port: ServicePort, pod: Pod) -> int | None:
    """The Pod's port; None if no container port has that name."""
    wanted = port.target_port
    if wanted is None or wanted == 0:
        return port.port
    if isinstance(wanted, int):
        return wanted
    named = (one.container_port for one in pod.ports if one.name == wanted)
    return next(named, None)


def _protocol(port: ServicePort) -> str:
    """Istio's rule: appProtocol, else the name before the dash; empty if neither is a protocol."""
    for text in (port.app_protocol.lower(), port.name.lower()):
        for word in (text, text.partition("-")[0]):
            if word in _HTTP or word in _OTHER:
                return word
    return "grpc-web" if port.name.lower().startswith("grpc-web") else ""


def _numbers(text: str) -> frozenset[int]:
    return frozenset(int(part) for part in text.split(",") if part.strip().isdecimal())


def _listed(ports: list[int]) -> str:
    return ", ".join(map(str, ports[:8])) + (", …" if len(ports) > 8 else "")


CHECKS: Final[tuple[Check, ...]] = (served, exposed, captured, every_port, tunnel)
