"""The result of a conversion: the AutoWasms, and everything that they cannot express.

Invariant: each field of the source is in an AutoWasm, has no effect at its origin, or is named by a `Loss`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from autowasm.api.v1alpha1 import API_VERSION, KIND, PatchContext

Document: TypeAlias = Mapping[str, Any]

BOTH_DIRECTIONS: Final = (PatchContext.SIDECAR_INBOUND, PatchContext.SIDECAR_OUTBOUND)
_SUFFIXES: Final = {
    PatchContext.SIDECAR_INBOUND: "inbound",
    PatchContext.SIDECAR_OUTBOUND: "outbound",
    PatchContext.GATEWAY: "gateway",
}
GATEWAY_NAME_LABEL: Final = "gateway.networking.k8s.io/gateway-name"
"""The label of the Pods that Istio runs for a Gateway of the Gateway API."""


@dataclass(frozen=True, slots=True)
class Loss:
    """`path` is the field at its origin, such as `spec.phase`; `problem` describes the consequence, or the action to take."""

    path: str
    problem: str


@dataclass(slots=True)
class Conversion:
    """The result for one object. `notes` are the differences without a loss."""

    autowasms: list[dict[str, Any]] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    notes: list[Loss] = field(default_factory=list)

    def lose(self, path: str, problem: str) -> None:
        """Name a field that no AutoWasm can express."""
        self.losses.append(Loss(path, problem))

    def note(self, path: str, text: str) -> None:
        """Name a difference that loses nothing."""
        self.notes.append(Loss(path, text))


@dataclass(frozen=True, slots=True)
class Batch:
    """The objects converted together, because one may refer to another. `gateway`: selectors match gateways, whatever their labels."""

    objects: Sequence[Document] = ()
    gateway: bool = False


@dataclass(frozen=True, slots=True)
class Direction:
    """One context of the filter, with its ports; None means all ports."""

    context: PatchContext
    ports: tuple[int, ...] | None = None


def autowasms(
    source: Document,
    *,
    spec: Document,
    directions: Iterable[Direction],
    suffix: str = "",
) -> Iterator[dict[str, Any]]:
    """One AutoWasm for each direction, named after the source and, if there are several, the direction.

    `spec` has `filter`, `selector` and `secret`, without context and ports.
    """
    metadata, chosen = mapping(source, "metadata"), list(directions)
    for direction in chosen:
        filter_ = dict(spec["filter"])
        if direction.ports is not None:
            filter_["applyPorts"] = list(direction.ports)
        if direction.context is not PatchContext.SIDECAR_INBOUND:
            filter_["context"] = direction.context.value
        name = f"{metadata.get('name')}{suffix}"
        if len(chosen) > 1:
            name += f"-{_SUFFIXES[direction.context]}"
        made = {key: metadata[key] for key in ("namespace", "labels") if metadata.get(key)}
        yield {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, **made},
            "spec": {**spec, "filter": filter_},
        }


def directions(
    matches: Iterable[tuple[PatchContext, Iterable[int]]],
) -> list[Direction]:
    """One for each context, with the ports of all its matches; a match without ports covers all of them."""
    ports: dict[PatchContext, set[int] | None] = {}
    for context, found in matches:
        numbers, known = set(found), ports.get(context, set())
        ports[context] = None if known is None or not numbers else known | numbers
    return [
        Direction(context, tuple(sorted(numbers)) if numbers is not None else None)
        for context, numbers in ports.items()
    ]


def target_refs(spec: Document) -> list[Mapping[str, Any]]:
    """`targetRefs`, and `targetRef` of older versions."""
    refs = items(spec, "targetRefs")
    if spec.get("targetRef"):
        refs.append(mapping(spec, "targetRef"))
    return refs


def first_gateway(conversion: Conversion, gateways: Sequence[str]) -> str | None:
    """The Gateway that an AutoWasm selects; the others are reported as lost."""
    for name in gateways[1:]:
        conversion.lose(
            "spec.targetRefs",
            f"Gateway {name}: an AutoWasm selects one gateway; copy it with {GATEWAY_NAME_LABEL}: {name}",
        )
    return gateways[0] if gateways else None


def image_source(image: str, sha256: str) -> dict[str, Any]:
    """`source` of an image with the sha256 of its manifest, which is left out if the image has a digest or `sha256` is empty."""
    if sha256 and "@" not in image:
        image = pinned(image, sha256)
    return {"source": {"registry": {"image": image}}}


def mapping(parent: object, name: str) -> Mapping[str, Any]:
    """The mapping of this name, or an empty one."""
    found = parent.get(name) if isinstance(parent, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def text(parent: object, name: str) -> str:
    """The text of this name; empty if there is none."""
    found = parent.get(name) if isinstance(parent, Mapping) else None
    return found if isinstance(found, str) else ""


def texts(parent: object, name: str) -> list[str]:
    """The texts in the list of this name."""
    found = parent.get(name) if isinstance(parent, Mapping) else None
    return [str(one) for one in found] if isinstance(found, list) else []


def whole_number(conversion: Conversion, parent: object, name: str, *, path: str) -> int | None:
    """The integer of this name. Any other value, which no API server accepts, is reported as lost."""
    found = parent.get(name) if isinstance(parent, Mapping) else None
    if found is None or (isinstance(found, int) and not isinstance(found, bool)):
        return found
    conversion.lose(f"{path}.{name}", "is not a number, and was left out")
    return None


def items(parent: object, name: str) -> list[Mapping[str, Any]]:
    """The mappings in the list of this name."""
    found = parent.get(name) if isinstance(parent, Mapping) else None
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def pinned(image: str, sha256: str) -> str:
    """The image by the digest of its manifest instead of a tag."""
    repository, colon, tag = image.rpartition(":")
    return f"{repository if colon and '/' not in tag else image}@sha256:{sha256}"


def secret_name(reference: str) -> str:
    """The name in Istio's reference to a Secret: `NAME`, `NAMESPACE/NAME`, `kubernetes://…`. istiod ignores the namespace."""
    return reference.rpartition("/")[2]


def is_gateway(labels: Mapping[str, Any]) -> bool:
    """Whether the charts of Istio and Higress, or Istio's Gateway controller, give a gateway these labels."""
    if any(key in labels for key in (GATEWAY_NAME_LABEL, "higress", "istio")):
        return True
    return str(labels.get("app", "")).startswith("istio-")


def unknown_fields(
    conversion: Conversion, value: Mapping[str, Any], known: Iterable[str], *, path: str
) -> None:
    """Name the other fields, unless they have the default of their type: an AutoWasm has no equivalent, or a later API added them."""
    for name in sorted(value.keys() - set(known)):
        if value[name] not in (None, "", [], {}, False):
            conversion.lose(f"{path}.{name}", "has no counterpart in an AutoWasm, and was left out")
