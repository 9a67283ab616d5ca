"""Converts EnvoyFilters, written by hand or by a tool, that insert HTTP filters with remote Wasm.

Sources: istio.io/api networking/v1alpha3/envoy_filter.proto; Envoy's extensions/wasm/v3/wasm.proto. A field may have either of
protobuf's JSON names, `vmConfig` or `vm_config`.
"""

import base64
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from autowasm.api.envoyfilter import MANAGED_BY
from autowasm.api.patches import INNER, ROUTER
from autowasm.api.v1alpha1 import PatchContext
from autowasm.convert.conversion import (
    Batch,
    Conversion,
    Document,
    autowasms,
    directions,
    image_source,
    items,
    mapping,
    secret_name,
    text,
    texts,
    unknown_fields,
    whole_number,
)

_WASM: Final = "envoy.extensions.filters.http.wasm.v3.Wasm"
_ANY_WASM: Final = re.compile(r"envoy\.extensions\.filters\.(?:http|network)\.wasm\.v3\.Wasm\Z")
_ROOT_NAMESPACE: Final = "istio-system"
"""Its extensions are those of all namespaces."""
_CAMEL: Final = re.compile(r"_([a-z0-9])")
_ROUTERS: Final = (ROUTER, "envoy.router")
_VIRTUAL_INBOUND: Final = "virtualInbound"
"""The listener that takes all requests to a Pod."""
_GATEWAY_LISTENER: Final = re.compile(r"(?:0\.0\.0\.0|\[::\])_([0-9]{1,5})\Z")
_KNOWN: Final = (
    "name",
    "rootId",
    "vmConfig",
    "configuration",
    "failOpen",
    "failurePolicy",
    "allowOnHeadersStopIteration",
)
_KNOWN_VM: Final = (
    "vmId",
    "runtime",
    "code",
    "environmentVariables",
)
_NO_SHA256: Final = "nil"
"""The value that istiod and others write for an absent one, because Envoy requires one. Source: istio.io/istio pkg/wasm/convert.go."""
_INSERTING: Final = frozenset({"INSERT_FIRST", "INSERT_BEFORE", "INSERT_AFTER", "ADD"})
_PULL_LOGIN: Final = "ISTIO_META_WASM_IMAGE_PULL_SECRET"
_PULL_POLICY: Final = "ISTIO_META_WASM_IMAGE_PULL_POLICY"
"""Variables that the agent reads, and removes. Source: istio.io/istio pkg/model/wasm.go."""
_CONTEXTS: Final = {
    "SIDECAR_INBOUND": (PatchContext.SIDECAR_INBOUND,),
    "SIDECAR_OUTBOUND": (PatchContext.SIDECAR_OUTBOUND,),
    "GATEWAY": (PatchContext.GATEWAY,),
    "ANY": tuple(PatchContext),
}


@dataclass(frozen=True, slots=True)
class _Found:
    """A filter, and the place in which a patch inserts it."""

    filter: Mapping[str, Any]
    secret: str
    contexts: tuple[PatchContext, ...]
    port: int | None


@dataclass(frozen=True, slots=True)
class _Extension:
    """The configuration of a filter that another patch inserts by this name. `path` names the object if it is a different one."""

    value: Mapping[str, Any]
    path: str


def has_wasm(source: Document) -> bool:
    """Whether a patch of this EnvoyFilter is about a Wasm filter. False for those that wasmer writes."""
    if MANAGED_BY.items() <= mapping(mapping(source, "metadata"), "labels").items():
        return False
    for patch in items(mapping(source, "spec"), "configPatches"):
        value = _value(patch)
        config = mapping(value, "typedConfig")
        urls = texts(mapping(value, "configDiscovery"), "typeUrls")
        kinds = [config.get("@type"), config.get("typeUrl"), *urls]
        if any(_ANY_WASM.search(str(kind)) for kind in kinds):
            return True
    return False


def envoy_filter(source: Document, batch: Batch) -> Conversion:
    """One AutoWasm for each Wasm filter and context; patches that differ only in the port are merged."""
    conversion, spec = Conversion(), mapping(source, "spec")
    unknown_fields(
        conversion,
        spec,
        ("workloadSelector", "configPatches", "priority", "targetRefs"),
        path="spec",
    )
    if spec.get("targetRefs"):
        conversion.lose("spec.targetRefs", "an AutoWasm selects Pods by their labels")
        return conversion
    selector = mapping(spec, "workloadSelector")
    unknown_fields(conversion, selector, ("labels",), path="spec.workloadSelector")
    priority = whole_number(conversion, spec, "priority", path="spec")
    found = list(_found(conversion, source, batch))
    groups: dict[str, list[_Found]] = {}
    for one in found:
        same = json.dumps([one.secret, one.filter], sort_keys=True)
        groups.setdefault(same, []).append(one)
    for number, members in enumerate(groups.values(), 1):
        filter_ = dict(members[0].filter)
        if priority:
            filter_["priority"] = priority
        made: dict[str, Any] = {"secret": members[0].secret} if members[0].secret else {}
        labels = dict(mapping(selector, "labels"))
        made |= {"selector": {"matchLabels": labels}, "filter": filter_}
        suffix = f"-{number}" if len(groups) > 1 else ""
        where = directions(
            (context, () if one.port is None else (one.port,))
            for one in members
            for context in one.contexts
        )
        conversion.autowasms += autowasms(source, spec=made, directions=where, suffix=suffix)
    if len(groups) > 1:
        conversion.note(
            "spec.configPatches",
            "several filters: the AutoWasms have the same priority, so the older one runs before the other. Create them in this order, "
            "or give each a filter.priority",
        )
    names = {one["metadata"]["name"] for one in conversion.autowasms}
    if names == {str(mapping(source, "metadata").get("name"))}:
        conversion.note(
            "metadata.name",
            "wasmer writes an EnvoyFilter with the name of the AutoWasm; it replaces this one if you annotate it: "
            "kubectl annotate envoyfilter NAME wasm.tcm.io/adopt=true",
        )
    elif names:
        conversion.note(
            "metadata.name",
            "the AutoWasms have other names: delete this EnvoyFilter when they are Ready. Until then, both run",
        )
    return conversion


def _found(conversion: Conversion, source: Document, batch: Batch) -> Iterator[_Found]:
    patches = items(mapping(source, "spec"), "configPatches")
    extensions = _visible(source, batch)
    clusters = 0
    for number, one in enumerate(patches):
        path = f"spec.configPatches[{number}]"
        kind, value = one.get("applyTo"), _value(one)
        if kind == "CLUSTER":
            clusters += 1
        elif kind == "EXTENSION_CONFIG" and _is_added(one, value):
            _used(conversion, str(value.get("name")), source, batch, path=path)
        elif kind == "EXTENSION_CONFIG" and _is_wasm(value):
            operation = text(mapping(one, "patch"), "operation")
            conversion.lose(
                f"{path}.patch.operation",
                f"{operation}: has no effect in Istio, which only adds extensions",
            )
        elif kind != "HTTP_FILTER":
            conversion.lose(
                path, f"{kind}: is not an HTTP filter with Wasm; keep it in an EnvoyFilter"
            )
        else:
            yield from _of_patch(conversion, one, value, extensions, path=path)
    if clusters:
        conversion.note(
            "spec.configPatches",
            "a cluster that Envoy only used to fetch the module is not needed: sidecars fetch the module from wasmer. Keep the "
            "cluster if the filter calls it",
        )


def _visible(source: Document, batch: Batch) -> dict[str, _Extension]:
    """The extensions that this object's filters can name: its own, those of its namespace and of the root namespace, in this order."""
    namespace, found = _namespace(source), dict[str, _Extension]()
    rest = [one for one in batch.objects if one is not source and one.get("kind") == "EnvoyFilter"]
    near = [one for one in rest if _namespace(one) == namespace]
    root = [one for one in rest if _namespace(one) == _ROOT_NAMESPACE]
    for each in (source, *near, *root):
        name = mapping(each, "metadata").get("name")
        before = "" if each is source else f"EnvoyFilter {name} "
        for number, patch in enumerate(items(mapping(each, "spec"), "configPatches")):
            if patch.get("applyTo") != "EXTENSION_CONFIG":
                continue
            value = _value(patch)
            if _is_added(patch, value):
                extension = _Extension(value, f"{before}spec.configPatches[{number}]")
                found.setdefault(str(value.get("name")), extension)
    return found


def _used(conversion: Conversion, name: str, source: Document, batch: Batch, *, path: str) -> None:
    """Report an extension that no filter of the batch uses."""
    namespace = _namespace(source)
    for each in (source, *batch.objects):
        if each.get("kind") != "EnvoyFilter":
            continue
        if namespace not in {_ROOT_NAMESPACE, _namespace(each)}:
            continue
        for patch in items(mapping(each, "spec"), "configPatches"):
            value = _value(patch)
            if value.get("configDiscovery") and str(value.get("name")) == name:
                if each is not source:
                    other = mapping(each, "metadata").get("name")
                    conversion.note(path, f"{name}: is in the AutoWasm of EnvoyFilter {other}")
                return
    conversion.lose(
        path,
        f"{name}: no filter has this name; convert the EnvoyFilter that inserts it together with this one",
    )


def _namespace(source: Document) -> str:
    return str(mapping(source, "metadata").get("namespace") or "")


def _is_added(patch: Document, value: Mapping[str, Any]) -> bool:
    """Whether the patch adds an extension. istiod ignores the other operations: extension_configuration_patch.go."""
    return mapping(patch, "patch").get("operation") == "ADD" and _is_wasm(value)


def _value(patch: Document) -> Mapping[str, Any]:
    value: Mapping[str, Any] = _camel(mapping(mapping(patch, "patch"), "value"))
    return value


def _of_patch(
    conversion: Conversion,
    patch: Document,
    value: Mapping[str, Any],
    extensions: Mapping[str, _Extension],
    *,
    path: str,
) -> Iterator[_Found]:
    """The filter that a patch of an HTTP_FILTER inserts."""
    origin, configured = path, value
    if discovery := mapping(value, "configDiscovery"):
        name = str(value.get("name"))
        if name not in extensions:
            conversion.lose(
                path,
                f"{name}: convert the EnvoyFilter with its EXTENSION_CONFIG together with this one",
            )
            return
        origin, configured = extensions[name].path, extensions[name].value
        if discovery.get("defaultConfig"):
            conversion.note(
                f"{path}.patch.value.configDiscovery.defaultConfig",
                "is not needed: the AutoWasm is published once its module is fetched",
            )
    elif not _is_wasm(value):
        conversion.lose(
            path, "HTTP_FILTER: is not an HTTP filter with Wasm; keep it in an EnvoyFilter"
        )
        return
    unknown_fields(
        conversion, value, ("name", "typedConfig", "configDiscovery"), path=f"{path}.patch.value"
    )
    made = _filter(conversion, configured, path=f"{origin}.patch.value")
    placed = _placed(conversion, patch, path=path)
    if made is not None and placed is not None:
        (filter_, secret), (position, contexts, port) = made, placed
        yield _Found(filter_ | position, secret, contexts, port)


def _is_wasm(value: Mapping[str, Any]) -> bool:
    config = mapping(value, "typedConfig")
    return _WASM in (str(config.get("@type", "")) + str(config.get("typeUrl", "")))


def _placed(
    conversion: Conversion, patch: Document, *, path: str
) -> tuple[dict[str, Any], tuple[PatchContext, ...], int | None] | None:
    """Position, contexts and port. None if the patch inserts nothing."""
    match, change = mapping(patch, "match"), mapping(patch, "patch")
    operation, class_ = text(change, "operation"), text(change, "filterClass")
    unknown_fields(conversion, change, ("operation", "value", "filterClass"), path=f"{path}.patch")
    listener = mapping(match, "listener")
    chain = mapping(listener, "filterChain")
    anchor = text(mapping(mapping(chain, "filter"), "subFilter"), "name")
    position: dict[str, Any] = {}
    if class_ not in {"", "UNSPECIFIED"} and operation in _INSERTING:
        conversion.lose(
            f"{path}.patch.filterClass",
            f"{class_}: an AutoWasm is first or before the router; this one is before the router, after Istio's filters",
        )
    elif operation == "INSERT_FIRST" or (operation == "INSERT_BEFORE" and not anchor):
        position = {"position": "First"}
    elif operation != "INSERT_BEFORE" or anchor not in _ROUTERS:
        if operation not in _INSERTING:
            conversion.lose(
                f"{path}.patch.operation", f"{operation} changes a filter of another object"
            )
            return None
        conversion.lose(
            f"{path}.patch.operation",
            f"{operation} {anchor}".rstrip()
            + ": an AutoWasm is first or before the router; this one is before the router",
        )
    for name in sorted(match.keys() - {"context", "listener"}):
        conversion.lose(f"{path}.match.{name}", "an AutoWasm has no such condition")
    context = text(match, "context") or "ANY"
    where = f"{path}.match.listener"
    port = whole_number(conversion, listener, "portNumber", path=where)
    port = port or whole_number(conversion, chain, "destinationPort", path=f"{where}.filterChain")
    conditions = listener.keys() - {"portNumber", "filterChain"}
    named = text(listener, "name")
    of_gateway = _GATEWAY_LISTENER.match(named) if context == "GATEWAY" else None
    if of_gateway is not None:
        port = int(of_gateway[1])
    if (
        named == INNER  # an AutoWasm also applies to the tunnel of ambient workloads
        or (named == _VIRTUAL_INBOUND and context == "SIDECAR_INBOUND")
        or of_gateway is not None
    ):
        conditions -= {"name"}
    for name in sorted(conditions):
        conversion.lose(f"{path}.match.listener.{name}", "an AutoWasm has no such condition")
    for name in sorted(chain.keys() - {"filter", "destinationPort"}):
        conversion.lose(
            f"{path}.match.listener.filterChain.{name}", "an AutoWasm has no such condition"
        )
    contexts = _CONTEXTS.get(context)
    if contexts is None:
        conversion.lose(f"{path}.match.context", f"{match.get('context')} is not supported")
        return None
    return position, contexts, port


def _filter(
    conversion: Conversion, value: Mapping[str, Any], *, path: str
) -> tuple[dict[str, Any], str] | None:
    """`spec.filter` and the pull secret."""
    typed = mapping(value, "typedConfig")
    config = mapping(mapping(typed, "value"), "config") or mapping(typed, "config")
    path = (
        f"{path}.typedConfig.value.config" if typed.get("value") else f"{path}.typedConfig.config"
    )
    vm = mapping(config, "vmConfig")
    unknown_fields(conversion, config, _KNOWN, path=path)
    unknown_fields(conversion, vm, _KNOWN_VM, path=f"{path}.vmConfig")
    made = _source(conversion, mapping(vm, "code"), path=f"{path}.vmConfig.code")
    if made is None:
        return None
    if config.get("rootId"):
        made["rootID"] = config["rootId"]
    if vm.get("vmId"):
        made["vmID"] = vm["vmId"]
    _configuration(conversion, config, made, path=path)
    secret = _environment(conversion, vm, made, path=f"{path}.vmConfig.environmentVariables")
    policy = text(config, "failurePolicy")
    if config.get("failOpen") is True or policy == "FAIL_OPEN":
        made["failStrategy"] = "FAIL_OPEN"
    elif policy == "FAIL_RELOAD":
        made["failStrategy"] = "FAIL_RELOAD"
    if config.get("allowOnHeadersStopIteration") is True:
        made["allowOnHeadersStopIteration"] = True
    if vm.get("runtime") not in (None, "envoy.wasm.runtime.v8"):
        conversion.lose(
            f"{path}.vmConfig.runtime", f"{vm['runtime']}: Istio's sidecars support only V8"
        )
    return made, secret


def _source(conversion: Conversion, code: Mapping[str, Any], *, path: str) -> dict[str, Any] | None:
    """`source` and `sha256`; for an image, the latter is that of the manifest."""
    remote = mapping(code, "remote")
    uri, sha256 = text(mapping(remote, "httpUri"), "uri"), text(remote, "sha256")
    if sha256 == _NO_SHA256:
        sha256 = ""
    if not remote:
        conversion.lose(
            path,
            "the module is a file or part of the EnvoyFilter: push it to a registry with wasmc push",
        )
        return None
    if uri.startswith("oci://"):  # fetched by the agent
        return image_source(uri.removeprefix("oci://"), sha256)
    if not uri.lower().startswith(("http://", "https://")):
        conversion.lose(
            f"{path}.remote.httpUri.uri",
            "is not a URL that wasmer can fetch from: push the module to a registry with wasmc push",
        )
        return None
    made: dict[str, Any] = {"source": {"object": {"url": uri}}}
    if sha256:
        made["sha256"] = sha256
    return made


def _environment(
    conversion: Conversion, vm: Mapping[str, Any], made: dict[str, Any], *, path: str
) -> str:
    """Sets `env` and `pullPolicy`, returns the pull secret."""
    variables = mapping(vm, "environmentVariables")
    values = dict(mapping(variables, "keyValues"))
    secret = secret_name(str(values.pop(_PULL_LOGIN, "")))
    if policy := values.pop(_PULL_POLICY, None):
        made["pullPolicy"] = policy
    if values:
        made["env"] = [{"name": name, "value": value} for name, value in values.items()]
    if secret and "object" in made["source"]:
        conversion.note(f"{path}.keyValues", f"{_PULL_LOGIN} has no effect for a URL")
        secret = ""
    for key in texts(variables, "hostEnvKeys"):
        conversion.lose(
            f"{path}.hostEnvKeys",
            f"{key} takes its value from the sidecar's environment: write the value into filter.env",
        )
    return secret


def _configuration(
    conversion: Conversion, config: Mapping[str, Any], made: dict[str, Any], *, path: str
) -> None:
    """The configuration that the filter receives: the text of a StringValue or BytesValue, protobuf's bytes of anything else."""
    given = config.get("configuration")
    if given in (None, {}):
        return
    typed = given if isinstance(given, Mapping) else {}
    kind, value = str(typed.get("@type", "")).rpartition("/")[2], typed.get("value")
    if kind == "google.protobuf.StringValue" and isinstance(value, str):
        made["pluginConfig"] = value
        return
    if kind == "google.protobuf.BytesValue" and isinstance(value, str):
        with contextlib.suppress(ValueError):  # not base64, or not UTF-8
            made["pluginConfig"] = base64.b64decode(value, validate=True).decode()
            return
    conversion.lose(
        f"{path}.configuration",
        f"{kind or 'this'} reaches the filter as protobuf bytes, which pluginConfig cannot hold: "
        "write what the filter expects as text or as an object",
    )


def _camel(value: Any) -> Any:
    """The same with protobuf's lower camel case JSON names, except for names that users chose: the configuration and the variables."""
    if isinstance(value, list):
        return [_camel(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    return {
        _CAMEL.sub(lambda found: found[1].upper(), str(name)): (
            one if str(name) in {"configuration", "key_values", "keyValues"} else _camel(one)
        )
        for name, one in value.items()
    }
