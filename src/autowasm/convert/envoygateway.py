"""Converts the Wasm extensions of Envoy Gateway's EnvoyExtensionPolicy, for a gateway that Istio runs.

Source: envoyproxy/gateway api/v1alpha1/wasm_types.go and envoyextensionypolicy_types.go.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from autowasm.api.v1alpha1 import PatchContext
from autowasm.convert.conversion import (
    GATEWAY_NAME_LABEL,
    Batch,
    Conversion,
    Direction,
    Document,
    autowasms,
    first_gateway,
    items,
    mapping,
    pinned,
    target_refs,
    text,
    texts,
    unknown_fields,
)

_TARGETS: Final = ("targetRef", "targetRefs", "targetSelectors")
_EXTENSION: Final = ("name", "rootID", "code", "config", "failOpen", "env")


def extension_policy(source: Document, batch: Batch) -> Conversion:
    """Each element of `spec.wasm` becomes an AutoWasm; their order becomes `priority`."""
    del batch
    conversion, spec = Conversion(), mapping(source, "spec")
    unknown_fields(conversion, spec, (*_TARGETS, "wasm"), path="spec")
    target = _gateway(conversion, spec)
    if target is None:
        return conversion
    conversion.note(
        "spec.targetRefs",
        f"the AutoWasm is for the Pods that Istio runs for Gateway {target}; wasmer does not configure Envoy Gateway's proxies",
    )
    extensions = items(spec, "wasm")
    for number, extension in enumerate(extensions):
        path = f"spec.wasm[{number}]"
        unknown_fields(conversion, extension, _EXTENSION, path=path)
        code = _code(conversion, extension, path=f"{path}.code")
        if code is None:
            continue
        filter_, secret = code
        filter_ |= _behaviour(conversion, extension, path=path)
        made: dict[str, Any] = {"secret": secret} if secret else {}
        made |= {"selector": {"matchLabels": {GATEWAY_NAME_LABEL: target}}, "filter": filter_}
        suffix = ""
        if len(extensions) > 1:
            filter_["priority"] = number
            suffix = f"-{number + 1}"
        direction = Direction(PatchContext.GATEWAY)
        conversion.autowasms += autowasms(source, spec=made, directions=[direction], suffix=suffix)
    return conversion


def _gateway(conversion: Conversion, spec: Document) -> str | None:
    refs = target_refs(spec)
    gateways = [str(one.get("name")) for one in refs if one.get("kind") == "Gateway"]
    for one in refs:
        if one.get("kind") != "Gateway":
            conversion.lose(
                "spec.targetRefs",
                f"{one.get('kind')} {one.get('name')}: an AutoWasm is for all requests of a proxy's port, not for a route",
            )
        elif one.get("sectionName"):
            conversion.lose(
                "spec.targetRefs",
                f"sectionName {one['sectionName']}: set filter.applyPorts to the port of this listener",
            )
    if spec.get("targetSelectors"):
        conversion.lose("spec.targetSelectors", "selects gateways by label: name one in targetRefs")
    return first_gateway(conversion, gateways)


def _code(
    conversion: Conversion, extension: Document, *, path: str
) -> tuple[dict[str, Any], str] | None:
    """The source in `spec.filter`, and the pull secret."""
    code = mapping(extension, "code")
    image, http = mapping(code, "image"), mapping(code, "http")
    made: dict[str, Any] = {}
    secret = ""
    if image:
        reference = text(image, "url").removeprefix("oci://")
        if sha256 := text(image, "sha256"):
            reference = pinned(reference, sha256)
        made["source"] = {"registry": {"image": reference}}
        secret = _secret(conversion, image, path=f"{path}.image.pullSecretRef")
        _tls(conversion, image, path=f"{path}.image.tls")
    elif http:
        made["source"] = {"object": {"url": http.get("url")}}
        if http.get("sha256"):
            made["sha256"] = http["sha256"]
        _tls(conversion, http, path=f"{path}.http.tls")
    else:
        conversion.lose(path, "has neither image nor http")
        return None
    if code.get("pullPolicy"):
        made["pullPolicy"] = code["pullPolicy"]
    return made, secret


def _secret(conversion: Conversion, image: Mapping[str, Any], *, path: str) -> str:
    reference = mapping(image, "pullSecretRef")
    if reference.get("namespace"):
        conversion.lose(
            f"{path}.namespace",
            f"{reference['namespace']}: the pull secret is in the namespace of the AutoWasm; copy it there",
        )
    return str(reference.get("name") or "")


def _tls(conversion: Conversion, source: Mapping[str, Any], *, path: str) -> None:
    if source.get("tls"):
        conversion.lose(path, "wasmer's operator sets authorities for a host with --registry-ca")


def _behaviour(conversion: Conversion, extension: Document, *, path: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if extension.get("rootID"):
        made["rootID"] = extension["rootID"]
    if "config" in extension and extension["config"] is not None:
        config = extension["config"]
        # Envoy Gateway gives the filter JSON, so a string keeps its quotes. Source: `wasmConfig` in internal/xds/translator/wasm.go.
        is_object = isinstance(config, Mapping)
        made["pluginConfig"] = config if is_object else json.dumps(config, ensure_ascii=False)
    if extension.get("failOpen") is True:
        made["failStrategy"] = "FAIL_OPEN"
    for key in texts(mapping(extension, "env"), "hostKeys"):
        conversion.lose(
            f"{path}.env.hostKeys",
            f"{key} takes its value from the proxy's environment: write the value into filter.env",
        )
    return made
