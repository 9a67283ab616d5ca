"""The EnvoyFilter of an AutoWasm: `render` makes it, the other functions read it back. Pure.

A Variant is one form of the filter: module, configuration, environment, and where it is inserted. `variant_of` makes the one that the
spec describes; a staged rollout (ADR 39) also has one that the spec no longer describes, so filters are read back. Each difference
from the reference sample is one that a real Envoy needs (ADR 6). Invariants: the same input gives the same bytes; a variant's
digest changes with everything that can affect a module or a request, and with nothing else; `read_filter` returns what `http_filter`
wrote; only fields that Envoy and Istio know are emitted, because Envoy silently ignores an unknown field inside a TypedStruct.

Source: Envoy, api/envoy/extensions/wasm/v3/wasm.proto.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct

from autowasm.api import patches, pluginconfig
from autowasm.api import record as records
from autowasm.api.patches import Placed
from autowasm.api.record import Record
from autowasm.api.v1alpha1 import (
    API_VERSION,
    KIND,
    AutoWasm,
    FailStrategy,
    Filter,
    PatchContext,
    Position,
)
from autowasm.digest import Sha256Hex, sha256_hex
from autowasm.settings import EnvoyFetch

VM_ID_DIGEST_LENGTH = 12
DIGEST_LENGTH: Final = 16
"""Hexadecimal digits of a variant's digest."""


class Variant(Struct, frozen=True, kw_only=True):
    """One form of an AutoWasm's filter."""

    sha256: Sha256Hex
    vm_id: str
    """As Envoy gets it."""
    root_id: str | None = None
    configuration: str | None = None
    """The text that the filter receives."""
    env: tuple[tuple[str, str], ...] = ()
    """Sorted by name."""
    fail_strategy: FailStrategy = FailStrategy.FAIL_CLOSE
    context: PatchContext = PatchContext.SIDECAR_INBOUND
    ports: tuple[int, ...] | None = None
    position: Position = Position.BEFORE_ROUTER
    allow_on_headers_stop_iteration: bool = False
    record: Record | None = None
    """The result of resolving the source; None if an EnvoyFilter does not have it. Not in the digest: a source may move."""
    resend: int = 0
    """How many times the module was resent (ADR 17). Not in the digest."""

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over everything but the record and the resends. The order of ports has no meaning."""
        ports = sorted(self.ports) if self.ports is not None else None
        values: list[Any] = [
            self.sha256,
            self.vm_id,
            self.root_id,
            self.configuration,
            self.env,
            self.fail_strategy.value,
            self.context.value,
            ports,
        ]
        # Defaults are omitted: filters without these fields keep their digest, which the status of a rollout has.
        if self.position is not Position.BEFORE_ROUTER or self.allow_on_headers_stop_iteration:
            values += [self.position.value, self.allow_on_headers_stop_iteration]
        return hashlib.sha256(msgspec.json.encode(values)).hexdigest()[:DIGEST_LENGTH]


def variant_of(autowasm: AutoWasm, record: Record, *, resend: int = 0) -> Variant:
    """The variant that the spec describes, with the module of `record`."""
    filter_ = autowasm.spec.filter
    config = filter_.plugin_config
    return Variant(
        sha256=record.sha256,
        vm_id=_vm_id(autowasm, record),
        root_id=filter_.root_id,
        configuration=None if config is UNSET else pluginconfig.as_text(config),
        env=tuple(sorted(_environment(filter_).items())),
        fail_strategy=filter_.fail_strategy,
        context=filter_.context,
        ports=filter_.apply_ports,
        position=filter_.position,
        allow_on_headers_stop_iteration=filter_.allow_on_headers_stop_iteration,
        record=record,
        resend=resend,
    )


def staged_plugin_name(autowasm: AutoWasm, variant: Variant) -> str:
    """The plugin's name during staged rollouts: Envoy's statistics `wasm.<name>.*` then show which variant it runs."""
    return plugin_name_of(autowasm, variant.digest)


def plugin_name_of(autowasm: AutoWasm, digest: str) -> str:
    """The same, by the variant's digest."""
    return f"{autowasm.metadata.name}-{digest}"


def _vm_id(autowasm: AutoWasm, record: Record) -> str:
    """The part of Envoy's VM key that wasmer chooses. It has everything in which two VMs can differ.

    Envoy makes the key of vmId, the VM's own configuration (wasmer sets none) and the code, which is empty while Envoy
    fetches the module. Envoy reuses a VM with the same key as it is, with the code and the environment of its start. On
    Envoy 1.36 this includes the failure policy, because the plugin's key has only name, direction, rootID and
    configuration. Sources: `createWasm` in Envoy's wasm.cc, `makeVmKey` and `makePluginKey` in proxy-wasm-cpp-host.

    With `spec.rollout` each variant has VMs of its own: their number proves that it started (`pods/runstate.py`).
    """
    filter_ = autowasm.spec.filter
    base = filter_.vm_id or f"{autowasm.metadata.namespace}.{autowasm.metadata.name}"
    parts = [base, record.sha256[:VM_ID_DIGEST_LENGTH]]
    # Defaults are omitted: objects without these fields keep the id of earlier versions.
    more: dict[str, Any] = {}
    if filter_.env:
        more["env"] = _environment(filter_)
    if filter_.fail_strategy is not FailStrategy.FAIL_CLOSE:
        more["failStrategy"] = filter_.fail_strategy.value
    if filter_.allow_on_headers_stop_iteration:
        more["allowOnHeadersStopIteration"] = True
    if autowasm.spec.rollout is not None:
        config = filter_.plugin_config
        more["configuration"] = None if config is UNSET else pluginconfig.as_text(config)
        more["of"] = [autowasm.metadata.namespace, autowasm.metadata.name, filter_.root_id]
    if more:
        text = json.dumps(more, sort_keys=True).encode()
        parts.append(hashlib.sha256(text).hexdigest()[:VM_ID_DIGEST_LENGTH])
    return "-".join(parts)


def _environment(filter_: Filter) -> dict[str, str]:
    return {variable.name: variable.value for variable in filter_.env}


_TYPE = "type.googleapis.com/"
_URI_END = re.compile(r"/wasm/([0-9a-f]{64})(?:\?r=([0-9]{1,9}))?\Z")


def http_filter(
    variant: Variant, settings: EnvoyFetch, *, name: str, plugin_name: str
) -> dict[str, Any]:
    """The HTTP filter, keys in sorted order. `name` is the filter's, for istiod; `plugin_name` the plugin's, for Envoy."""
    config: dict[str, Any] = {}
    if variant.allow_on_headers_stop_iteration:
        config["allowOnHeadersStopIteration"] = True
    if variant.configuration is not None:
        # Always a StringValue: of other messages, also of a Struct, the filter receives protobuf's wire format.
        # Source: Envoy `MessageUtil::anyToBytes`, which unwraps StringValue and BytesValue only.
        config["configuration"] = {
            "@type": f"{_TYPE}google.protobuf.StringValue",
            "value": variant.configuration,
        }
    if variant.fail_strategy is FailStrategy.FAIL_OPEN:
        config["failOpen"] = True  # Envoy before 1.33 silently ignores failurePolicy
    elif variant.fail_strategy is FailStrategy.FAIL_RELOAD:
        config["failurePolicy"] = "FAIL_RELOAD"
    config["name"] = plugin_name
    if variant.root_id is not None:
        config["rootId"] = variant.root_id
    config["vmConfig"] = _vm_config(variant, settings)
    return {
        "name": name,
        "typedConfig": {
            "@type": f"{_TYPE}udpa.type.v1.TypedStruct",
            "typeUrl": f"{_TYPE}envoy.extensions.filters.http.wasm.v3.Wasm",
            "value": {"config": config},
        },
    }


def _vm_config(variant: Variant, settings: EnvoyFetch) -> dict[str, Any]:
    config: dict[str, Any] = {
        "code": {
            "remote": {
                "httpUri": {
                    "cluster": settings.cluster,
                    "timeout": _duration(settings.timeout),
                    "uri": f"{settings.authority}/wasm/{variant.sha256}{_again(variant.resend)}",
                },
                "retryPolicy": {
                    "numRetries": settings.retries,
                    "retryBackOff": {"baseInterval": "1s", "maxInterval": "5s"},
                },
                "sha256": variant.sha256,
            }
        }
    }
    if variant.env:
        config["environmentVariables"] = {"keyValues": dict(variant.env)}
    config["runtime"] = "envoy.wasm.runtime.v8"
    config["vmId"] = variant.vm_id
    return config


def _again(resend: int) -> str:
    """The query of the n-th resend. wasmer ignores it; Envoy sees another configuration and fetches again (ADR 17)."""
    return f"?r={resend}" if resend else ""


def _duration(seconds: float) -> str:
    """A duration in protobuf's JSON form: no exponent, at most milliseconds."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def module_of(value: Mapping[str, Any]) -> Sha256Hex | None:
    """The module that an HTTP filter makes Envoy fetch; None for a filter that is not ours, or after a manual edit."""
    try:
        remote = value["typedConfig"]["value"]["config"]["vmConfig"]["code"]["remote"]
        return sha256_hex(remote["sha256"])
    except (KeyError, TypeError, ValueError):
        return None


def resend_of(value: Mapping[str, Any]) -> tuple[str, int] | None:
    """The module in the filter's uri, and the number of times that it was resent; None if there is no such uri."""
    try:
        config = value["typedConfig"]["value"]["config"]
        uri = config["vmConfig"]["code"]["remote"]["httpUri"]["uri"]
    except (KeyError, TypeError):
        return None
    found = _URI_END.search(uri) if isinstance(uri, str) else None
    return (found[1], int(found[2] or 0)) if found else None


class _Configuration(Struct):
    value: str


class _KeyValues(Struct, rename="camel"):
    key_values: dict[str, str]


class _VmConfig(Struct, rename="camel"):
    vm_id: str
    environment_variables: _KeyValues | None = None


class _PluginConfig(Struct, rename="camel"):
    vm_config: _VmConfig
    root_id: str | None = None
    configuration: _Configuration | None = None
    allow_on_headers_stop_iteration: bool = False
    fail_open: bool = False
    failure_policy: str = ""


# Made here, not at first use: see registry/manifest.py.
_PLUGIN_CONFIG: Final = msgspec.json.Decoder(_PluginConfig)


def read_filter(
    value: Mapping[str, Any], *, context: PatchContext, ports: tuple[int, ...] | None
) -> Variant | None:
    """The variant of an HTTP filter, without its record. None if it is not in our form: another filter, or a manual edit.

    A variant does not include how the module is fetched: that is rendered again from the current settings.
    """
    sha256, resent = module_of(value), resend_of(value)
    if sha256 is None:
        return None
    try:
        config = msgspec.convert(value["typedConfig"]["value"]["config"], _PLUGIN_CONFIG.type)
    except msgspec.ValidationError:
        return None
    variables = config.vm_config.environment_variables
    strategy = FailStrategy.FAIL_CLOSE
    if config.fail_open:
        strategy = FailStrategy.FAIL_OPEN
    elif config.failure_policy == FailStrategy.FAIL_RELOAD.value:
        strategy = FailStrategy.FAIL_RELOAD
    return Variant(
        sha256=sha256,
        vm_id=config.vm_config.vm_id,
        root_id=config.root_id,
        configuration=config.configuration.value if config.configuration else None,
        env=tuple(sorted(variables.key_values.items())) if variables else (),
        fail_strategy=strategy,
        context=context,
        ports=ports,
        allow_on_headers_stop_iteration=config.allow_on_headers_stop_iteration,
        resend=resent[1] if resent and resent[0] == sha256 else 0,
    )


MANAGED_BY = {"app.kubernetes.io/managed-by": "wasmer"}
REVISION_LABEL = "istio.io/rev"
REFERENCED_SERVICES = "envoyfilter.istio.io/referenced-services"
"""Istio's annotation. If gateways get clusters for their routes only (PILOT_FILTER_GATEWAY_CLUSTER_CONFIG), it names the
further Services that a gateway needs. Sidecars ignore it."""
OWNED_ANNOTATIONS = frozenset({records.ANNOTATION, records.STABLE_ANNOTATION, REFERENCED_SERVICES})
"""Annotations that wasmer owns on its EnvoyFilters: as `render` makes them, or absent. It keeps all others."""
_OUTBOUND = re.compile(r"outbound\|[0-9]+\|[^|]*\|(?P<host>[^|]+)")


def render(
    autowasm: AutoWasm, record: Record, settings: EnvoyFetch, *, resend: int = 0
) -> dict[str, Any]:
    """The whole object, keys in sorted order. `resend`: how many times it was resent (ADR 17).

    Namespace and name are the AutoWasm's. The owner reference is set if the AutoWasm has a uid (one read from a directory has
    none).
    """
    variant = variant_of(autowasm, record, resend=resend)
    value = http_filter(variant, settings, name=patches.FILTER, plugin_name=autowasm.metadata.name)
    placed = Placed(variant.context, variant.ports, value, variant.position)
    return envoyfilter(
        autowasm,
        settings,
        patches_=patches.config_patches(placed),
        annotations={records.ANNOTATION: records.dump(record)},
    )


def envoyfilter(
    autowasm: AutoWasm,
    settings: EnvoyFetch,
    *,
    patches_: list[dict[str, Any]],
    annotations: Mapping[str, str],
) -> dict[str, Any]:
    """The object around the patches, as `render` builds it."""
    spec = autowasm.spec
    result: dict[str, Any] = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": _metadata(autowasm, settings, annotations),
        "spec": {"configPatches": patches_},
    }
    if spec.filter.priority is not None:
        result["spec"]["priority"] = spec.filter.priority
    if spec.selector.match_labels:
        # Istio's validation warns about an empty workloadSelector; without it the meaning is the same.
        result["spec"]["workloadSelector"] = {
            "labels": dict(sorted(spec.selector.match_labels.items()))
        }
    return result


def _metadata(
    autowasm: AutoWasm, settings: EnvoyFetch, annotations: Mapping[str, str]
) -> dict[str, Any]:
    labels = dict(MANAGED_BY)
    if revision := autowasm.metadata.labels.get(REVISION_LABEL):
        labels[REVISION_LABEL] = revision
    annotations = dict(annotations)
    # For gateways only: if an object has an istio.io annotation, istiod pushes after every change of its metadata
    # (pilot/pkg/model/config_compare.go NeedsPush).
    service = _referenced_service(settings.cluster)
    if autowasm.spec.filter.context is PatchContext.GATEWAY and service is not None:
        annotations[REFERENCED_SERVICES] = service
    metadata: dict[str, Any] = {
        "annotations": dict(sorted(annotations.items())),
        "labels": labels,
        "name": autowasm.metadata.name,
        "namespace": autowasm.metadata.namespace,
    }
    if autowasm.metadata.uid:
        metadata["ownerReferences"] = [
            {
                "apiVersion": API_VERSION,
                "controller": True,
                "kind": KIND,
                "name": autowasm.metadata.name,
                "uid": autowasm.metadata.uid,
            }
        ]
    return metadata


def _referenced_service(cluster: str) -> str | None:
    """`namespace/host` of the Service behind `outbound|PORT|SUBSET|HOST`; the host alone if it does not belong to a Kubernetes Service.

    None if istiod does not make the cluster from a Service, so it cannot omit the cluster.
    """
    found = _OUTBOUND.fullmatch(cluster)
    if found is None:
        return None
    host = found["host"]
    _, _, rest = host.partition(".")
    namespace, _, domain = rest.partition(".")
    return f"{namespace}/{host}" if namespace and domain.startswith("svc.") else host


def resend_count_of(envoyfilter: Mapping[str, Any], sha256: str) -> int:
    """The number of times that the live EnvoyFilter was resent for this module; 0 for another module."""
    found = map(resend_of, patches.filters_of(envoyfilter))
    return next((each[1] for each in found if each is not None and each[0] == sha256), 0)


def digests_of(envoyfilter: Mapping[str, Any]) -> tuple[Sha256Hex, ...]:
    """The modules that its spec makes proxies fetch, without duplicates. wasmer must serve them regardless of the annotations."""
    # Without a module: the tunnel's anchor (api/patches.py), or a manual edit.
    found = map(module_of, patches.filters_of(envoyfilter))
    return tuple(dict.fromkeys(sha256 for sha256 in found if sha256 is not None))


def records_of(envoyfilter: Mapping[str, Any]) -> tuple[Record, ...]:
    """The records in its annotations, the newest first; during a staged rollout there may be two (ADR 39).

    Empty if a record is absent or unreadable, or if the records and the spec name different modules.
    """
    annotations = (envoyfilter.get("metadata") or {}).get("annotations") or {}
    texts = [
        annotations[name]
        for name in (records.ANNOTATION, records.STABLE_ANNOTATION)
        if name in annotations
    ]
    found = [records.load(text) if isinstance(text, str) else None for text in texts]
    known = tuple(record for record in found if record is not None)
    named = {record.sha256 for record in known}
    is_whole = len(known) == len(texts) and records.ANNOTATION in annotations
    return known if is_whole and named == set(digests_of(envoyfilter)) else ()


def record_of(envoyfilter: Mapping[str, Any]) -> Record | None:
    """The record in its annotation; None if it is absent or unreadable, or if the spec names another module.

    During a staged rollout, the record of the newer module.
    """
    return next(iter(records_of(envoyfilter)), None)


def plugin_config_of(envoyfilter: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The PluginConfig that every patch of `render` has; None if there is none. A manual edit may lack fields."""
    return plugin_config(patches.filters_of(envoyfilter))


def plugin_config(filters: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The PluginConfig of the first of these filters that has one."""
    for value in filters:
        try:
            config = value["typedConfig"]["value"]["config"]
        except (KeyError, TypeError):
            continue  # the tunnel's anchor (api/patches.py), or a manual edit
        if isinstance(config, Mapping):
            return config
    return None
