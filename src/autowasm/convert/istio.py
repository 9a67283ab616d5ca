"""Converts Istio's WasmPlugin and TrafficExtension, and Higress' WasmPlugin.

Sources: istio.io/api extensions/v1alpha1/wasm.proto and traffic_extension.proto; istio.io/istio pilot/pkg/model/extensions.go and
pilot/pkg/model/push_context.go (`WasmPluginsByListenerInfo`, the order); alibaba/higress pkg/ingress/config/ingress_config.go
(`convertIstioWasmPlugin`).
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from autowasm.api.v1alpha1 import PatchContext
from autowasm.convert.conversion import (
    BOTH_DIRECTIONS,
    GATEWAY_NAME_LABEL,
    Batch,
    Conversion,
    Direction,
    Document,
    autowasms,
    directions,
    first_gateway,
    image_source,
    is_gateway,
    items,
    mapping,
    secret_name,
    target_refs,
    text,
    unknown_fields,
    whole_number,
)

_SELECTION: Final = ("selector", "targetRef", "targetRefs", "match", "phase", "priority")
_MODULE: Final = (
    "url",
    "sha256",
    "imagePullPolicy",
    "imagePullSecret",
    "verificationKey",
    "pluginConfig",
    "pluginName",
    "failStrategy",
    "vmConfig",
    "type",
)
_HIGRESS: Final = ("defaultConfig", "defaultConfigDisable", "matchRules")
_RULE: Final = ("config", "configDisable", "ingress", "service", "domain", "routeType")
_MATCHES: Final = {
    "ingress": "_match_route_",
    "service": "_match_service_",
    "domain": "_match_domain_",
}
_MODES: Final = ("CLIENT", "SERVER", "CLIENT_AND_SERVER", "UNDEFINED")


def wasm_plugin(source: Document, batch: Batch) -> Conversion:
    """One AutoWasm for each direction."""
    conversion, spec = Conversion(), mapping(source, "spec")
    unknown_fields(conversion, spec, (*_SELECTION, *_MODULE), path="spec")
    _convert(conversion, source, spec, spec, path="spec", gateway=batch.gateway)
    return conversion


def traffic_extension(source: Document, batch: Batch) -> Conversion:
    """Like `wasm_plugin`; the module is in `spec.wasm`."""
    conversion, spec = Conversion(), mapping(source, "spec")
    if spec.get("lua"):
        conversion.lose("spec.lua", "is Lua, but wasmer delivers only WebAssembly: keep it")
        return conversion
    unknown_fields(conversion, spec, (*_SELECTION, "wasm"), path="spec")
    wasm = mapping(spec, "wasm")
    unknown_fields(conversion, wasm, _MODULE, path="spec.wasm")
    _convert(conversion, source, spec, wasm, path="spec.wasm", gateway=batch.gateway)
    return conversion


def higress_plugin(source: Document, batch: Batch) -> Conversion:
    """Like `wasm_plugin`, for Higress' gateways, whatever the selector."""
    del batch
    conversion, spec = Conversion(), mapping(source, "spec")
    unknown_fields(conversion, spec, (*_SELECTION, *_MODULE, *_HIGRESS), path="spec")
    module = dict(spec)
    if not spec.get("pluginConfig"):  # it has precedence over all others
        config = _higress_config(conversion, spec)
        if config is None:
            return conversion
        module["pluginConfig"] = config
    for name in ("selector", "targetRef", "targetRefs", "match"):
        if spec.get(name):
            conversion.note(f"spec.{name}", "has no effect in Higress, and was left out")
    placed = {name: spec[name] for name in ("phase", "priority") if name in spec}
    placed["selector"] = {"matchLabels": {"higress": _higress_gateway(source)}}
    _convert(conversion, source, placed, module, path="spec", gateway=True)
    return conversion


def _higress_gateway(source: Document) -> str:
    """The value of the label `higress` that Higress' chart gives its gateways."""
    return f"{mapping(source, 'metadata').get('namespace') or 'higress-system'}-higress-gateway"


def _higress_config(conversion: Conversion, spec: Document) -> dict[str, Any] | None:
    """The configuration that Higress gives the filter, which applies the rules itself. None if the plugin is disabled."""
    is_disabled = spec.get("defaultConfigDisable") is True
    config = {} if is_disabled else dict(mapping(spec, "defaultConfig"))
    rules = []
    for number, rule in enumerate(items(spec, "matchRules")):
        path = f"spec.matchRules[{number}]"
        unknown_fields(conversion, rule, _RULE, path=path)
        if rule.get("configDisable") is True:
            continue
        if text(rule, "routeType") not in {"", "HTTP"}:
            conversion.lose(f"{path}.routeType", f"{rule['routeType']}: only HTTP is supported")
            continue
        matches = {key: rule[name] for name, key in _MATCHES.items() if rule.get(name)}
        if matches:
            rules.append({**mapping(rule, "config"), **matches})
        else:
            conversion.lose(
                path, "has no ingress, service or domain, so Higress ignores the plugin"
            )
    if rules:
        config["_rules_"] = rules
        conversion.note(
            "spec.matchRules",
            "are in pluginConfig._rules_, where Higress writes them, too: only a filter made with Higress' SDK applies them, and "
            "ingress and service are names of Higress' routes and clusters",
        )
    elif is_disabled:
        conversion.lose(
            "spec.defaultConfigDisable", "the plugin is disabled: nothing is left to convert"
        )
        return None
    return config


def _convert(
    conversion: Conversion,
    source: Document,
    spec: Document,
    module: Document,
    *,
    path: str,
    gateway: bool,
) -> None:
    if module.get("type") == "NETWORK":
        conversion.lose(f"{path}.type", "NETWORK filters are not supported: keep it")
        return
    selector = _selector(conversion, spec)
    filter_ = _filter(conversion, module, path=path)
    if selector is None or filter_ is None:
        return
    labels, is_gateways = selector
    placed = _directions(conversion, spec, labels, gateway=gateway or is_gateways)
    position = _position(conversion, spec, placed)
    if position is not None:
        filter_["position"] = position
    if priority := whole_number(conversion, spec, "priority", path="spec"):
        # A filter that is inserted first precedes those inserted earlier, so the greater number is first there, too.
        filter_["priority"] = priority if position is not None else -priority
    made: dict[str, Any] = {}
    if module.get("imagePullSecret"):
        if "object" in filter_["source"]:
            conversion.note(f"{path}.imagePullSecret", "has no effect for a URL, and was left out")
        else:
            made["secret"] = secret_name(str(module["imagePullSecret"]))
    made |= {"selector": {"matchLabels": dict(labels)}, "filter": filter_}
    conversion.autowasms += autowasms(source, spec=made, directions=placed)


def _selector(conversion: Conversion, spec: Document) -> tuple[Mapping[str, Any], bool] | None:
    """The labels, and whether they belong to a gateway; None if nothing can be selected."""
    refs = target_refs(spec)
    if not refs:
        unknown_fields(
            conversion, mapping(spec, "selector"), ("matchLabels",), path="spec.selector"
        )
        return mapping(mapping(spec, "selector"), "matchLabels"), False
    gateways = []
    for one in refs:
        kind, name = one.get("kind"), str(one.get("name"))
        if kind != "Gateway" or "waypoint" in name:
            conversion.lose(
                "spec.targetRefs",
                f"{kind} {name}: an AutoWasm selects sidecars and gateways by their labels, and waypoints not at all",
            )
        else:
            gateways.append(name)
    gateway = first_gateway(conversion, gateways)
    if gateway is None:
        return None
    conversion.note(
        "spec.targetRefs",
        f"the AutoWasm is for the Pods with the label {GATEWAY_NAME_LABEL}: {gateway}; it has no effect if they are waypoints",
    )
    return {GATEWAY_NAME_LABEL: gateway}, True


def _filter(conversion: Conversion, module: Document, *, path: str) -> dict[str, Any] | None:
    made = _source(conversion, module, path=path)
    if made is None:
        return None
    if policy := text(module, "imagePullPolicy"):
        if policy in {"IfNotPresent", "Always"}:
            made["pullPolicy"] = policy
        elif policy != "UNSPECIFIED_POLICY":
            conversion.lose(f"{path}.imagePullPolicy", f"{policy!r} is not a policy of Istio's API")
    if name := module.get("pluginName"):
        made["rootID"] = name
    if config := module.get("pluginConfig"):  # Istio, too, treats an empty one as absent
        made["pluginConfig"] = config
    strategy = text(module, "failStrategy")
    if strategy and strategy != "FAIL_CLOSE":
        made["failStrategy"] = strategy
    if module.get("verificationKey"):
        conversion.note(f"{path}.verificationKey", "has no effect in Istio, and was left out")
    if environment := _environment(conversion, module, path=f"{path}.vmConfig.env"):
        made["env"] = environment
    return made


def _source(conversion: Conversion, module: Document, *, path: str) -> dict[str, Any] | None:
    """`source`, and `sha256` of an object. A reference without a scheme names an image."""
    url, sha256 = text(module, "url"), text(module, "sha256")
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "file":
        conversion.lose(
            f"{path}.url", "is a file in the sidecar: push it to a registry with wasmc push"
        )
        return None
    if not separator or scheme == "oci":
        return image_source(rest if separator else url, sha256)
    made: dict[str, Any] = {"source": {"object": {"url": url}}}
    if sha256:
        made["sha256"] = sha256
        if not rest.partition("?")[0].endswith(".wasm"):
            conversion.note(
                f"{path}.sha256",
                "Istio compares it with the downloaded file, wasmer with the module: for an archive the two differ",
            )
    return made


def _environment(conversion: Conversion, module: Document, *, path: str) -> list[dict[str, Any]]:
    config = mapping(module, "vmConfig")
    unknown_fields(conversion, config, ("env",), path=path.removesuffix(".env"))
    made = []
    for number, one in enumerate(items(config, "env")):
        if one.get("valueFrom") == "HOST":
            conversion.lose(
                f"{path}[{number}]",
                f"{one.get('name')} takes its value from the sidecar's environment: write the value into filter.env",
            )
        else:
            made.append({"name": one.get("name"), "value": one.get("value", "")})
    return made


def _position(conversion: Conversion, spec: Document, placed: Iterable[Direction]) -> str | None:
    """The place in the chain, whose order is that of `buildHTTPConnectionManager` in pilot/pkg/networking/core/listener_builder.go."""
    phase = text(spec, "phase")
    if phase == "AUTHN":
        conversion.note(
            "spec.phase",
            "AUTHN: the AutoWasm is before all filters, so also before two that a WasmPlugin follows: external authorization "
            "(AuthorizationPolicies with the action CUSTOM), and the metadata exchange, which sets the peer's properties",
        )
        return "First"
    if phase in {"AUTHZ", "STATS"}:
        conversion.lose(
            "spec.phase",
            f"{phase}: an AutoWasm is first or before the router. This one is before the router, after Istio's authentication, "
            "authorization and statistics; filter.position: First puts it before them",
        )
    elif any(one.context is not PatchContext.SIDECAR_INBOUND for one in placed):
        conversion.note(
            "spec.phase",
            "the AutoWasm is next to the router, so requests that a VirtualService aborts (fault) or answers (corsPolicy) do not "
            "reach it; a WasmPlugin gets them",
        )
    return None


def _directions(
    conversion: Conversion, spec: Document, labels: Mapping[str, Any], *, gateway: bool
) -> list[Direction]:
    """The directions in which the filter runs, each of which becomes an AutoWasm."""
    matches: list[tuple[PatchContext, set[int]]] = []
    for number, one in enumerate(items(spec, "match") or [{}]):
        unknown_fields(conversion, one, ("mode", "ports"), path=f"spec.match[{number}]")
        mode = text(one, "mode") or "CLIENT_AND_SERVER"
        if mode not in _MODES:
            conversion.lose(f"spec.match[{number}].mode", f"{mode} is not a mode of Istio's API")
            continue
        found = [
            whole_number(conversion, port, "number", path=f"spec.match[{number}].ports[{index}]")
            for index, port in enumerate(items(one, "ports"))
        ]
        numbers = {port for port in found if port}
        if found and not numbers:
            conversion.lose(
                f"spec.match[{number}].ports", "names no port, and would match all of them"
            )
            continue
        matches += [(context, numbers) for context in _contexts(mode, labels, gateway=gateway)]
    of_gateway = gateway or is_gateway(labels)
    if not matches and of_gateway:
        conversion.lose(
            "spec.match",
            "mode SERVER never applies to a gateway, not in Istio either: nothing is left to convert",
        )
    if is_gateway(labels) and not gateway:
        conversion.note(
            "spec.selector",
            "the labels are those of a gateway, so the AutoWasm applies to the requests to the gateway, and not to sidecars",
        )
    elif not of_gateway and any("gateway" in str(value) for value in labels.values()):
        conversion.note(
            "spec.selector",
            "is treated as that of sidecars; if these Pods are gateways, use --gateway",
        )
    made = directions(matches)
    if not labels and not gateway and any(one.context is PatchContext.GATEWAY for one in made):
        conversion.note(
            "spec.selector",
            "without one the plugin is for all Pods of the namespace, so there is an AutoWasm for its gateways, too",
        )
    return made


def _contexts(mode: str, labels: Mapping[str, Any], *, gateway: bool) -> list[PatchContext]:
    is_client, is_server = mode != "SERVER", mode != "CLIENT"
    gateways = [PatchContext.GATEWAY] if is_client else []
    if gateway or is_gateway(labels):
        return gateways
    inbound, outbound = BOTH_DIRECTIONS
    sidecars = [inbound] * is_server + [outbound] * is_client
    return sidecars if labels else sidecars + gateways
