"""AutoWasm v1alpha1 (`wasm.tcm.io/v1alpha1`): the spec as frozen Structs, and its defaults.

Invariant: only `validation.parse` makes an `AutoWasm`, and it is valid, so no other code checks a field again.
"""

import enum
from typing import Any

from msgspec import UNSET, Struct, UnsetType, field

from autowasm.digest import Sha256Hex
from autowasm.reference import ImageReference

GROUP = "wasm.tcm.io"
API_VERSION = f"{GROUP}/v1alpha1"
KIND = "AutoWasm"
REFRESH_ANNOTATION = f"{GROUP}/refresh"
"""A value other than `status.refresh` makes the leader resolve the source again (ADR 7)."""
ROLLOUT_ANNOTATION = f"{GROUP}/rollout"
"""A command for the staged rollout: `pause`, `resume`, `promote`, `abort`, `retry` (ADR 39)."""

PREFLIGHT_ANNOTATION = f"{GROUP}/preflight"
"""One of `settings.PreflightMode`: how this object's module is checked before it is published (ADR 37)."""


class FailStrategy(enum.Enum):
    """How Envoy answers requests while the module cannot run. Names as in Istio's WasmPlugin."""

    FAIL_CLOSE = "FAIL_CLOSE"
    FAIL_OPEN = "FAIL_OPEN"
    FAIL_RELOAD = "FAIL_RELOAD"


class PatchContext(enum.Enum):
    """Which listeners get the filter. Names as in Istio's EnvoyFilter."""

    SIDECAR_INBOUND = "SIDECAR_INBOUND"
    SIDECAR_OUTBOUND = "SIDECAR_OUTBOUND"
    GATEWAY = "GATEWAY"


class Position(enum.Enum):
    """Where the filter is among the HTTP filters of a listener."""

    BEFORE_ROUTER = "BeforeRouter"
    FIRST = "First"
    """Before all others, also Istio's authentication and authorization."""


class PullPolicy(enum.Enum):
    """When a tag is resolved again (ADR 7)."""

    IF_NOT_PRESENT = "IfNotPresent"
    ALWAYS = "Always"


class OnUnknown(enum.Enum):
    """How a staged rollout treats a Pod whose Envoy cannot be read (ADR 39)."""

    WAIT = "Wait"
    CONTINUE = "Continue"


class RegistrySource(Struct, frozen=True, forbid_unknown_fields=True):
    """`spec.filter.source.registry`: an image reference without a scheme."""

    image: str


class ObjectSource(Struct, frozen=True, forbid_unknown_fields=True):
    """`spec.filter.source.object`: an http(s) URL of a public object."""

    url: str


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """`spec.filter.source`: exactly one of the two."""

    registry: RegistrySource | None = None
    object: ObjectSource | None = None

    def __str__(self) -> str:
        """The source as one string. Two sources are the same if these strings are equal."""
        if self.registry is not None:
            return f"registry:{self.registry.image}"
        return f"object:{self.object.url}" if self.object else ""


class EnvVar(Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of `spec.filter.env`."""

    name: str
    value: str = ""


class Filter(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """`spec.filter`."""

    source: Source
    apply_ports: tuple[int, ...] | None = None
    root_id: str | None = field(default=None, name="rootID")
    vm_id: str | None = field(default=None, name="vmID")
    sha256: Sha256Hex | None = None
    plugin_config: Any | UnsetType = UNSET
    env: tuple[EnvVar, ...] = ()
    fail_strategy: FailStrategy = FailStrategy.FAIL_CLOSE
    context: PatchContext = PatchContext.SIDECAR_INBOUND
    position: Position = Position.BEFORE_ROUTER
    allow_on_headers_stop_iteration: bool = False
    priority: int | None = None
    pull_policy: PullPolicy | None = None
    refresh_interval: str | None = None


class Selector(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """`spec.selector`. An explicit `matchLabels: {}` means every workload of the namespace."""

    match_labels: dict[str, str]


class Rollout(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """`spec.rollout`: a changed filter reaches the Pods in steps (ADR 39). If absent, it reaches all Pods at once."""

    steps: tuple[int | str, ...] = (1, "10%", "50%")
    """Counts of Pods and percentages (`rolloutsteps.py`); a step with all Pods follows."""
    pause: str = "30s"
    """How long a step must stay healthy."""
    deadline: str = "10m"
    """How long a step may be without being healthy, in total."""
    max_failure_ratio: float = 0.01
    """By how much the share of 5xx responses may exceed that of the Pods with the stable filter."""
    on_unknown: OnUnknown = OnUnknown.WAIT


class Spec(Struct, frozen=True, forbid_unknown_fields=True):
    """`spec`."""

    filter: Filter
    selector: Selector
    secret: str | None = None
    rollout: Rollout | None = None


class Metadata(Struct, frozen=True, rename="camel"):
    """The part of ObjectMeta that wasmer uses."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class AutoWasm(Struct, frozen=True):
    """A valid AutoWasm."""

    metadata: Metadata
    spec: Spec

    @property
    def image(self) -> ImageReference | None:
        """The parsed image reference, None for an object source."""
        registry = self.spec.filter.source.registry
        return ImageReference.parse(registry.image) if registry else None

    @property
    def pull_policy(self) -> PullPolicy:
        """The effective policy: if unset, `Always` for `:latest` or no tag, else `IfNotPresent`.

        A digest never changes, so it is never resolved again, whatever the policy in the spec.
        """
        image = self.image
        if image is None:
            return self.spec.filter.pull_policy or PullPolicy.IF_NOT_PRESENT
        if image.is_pinned:
            return PullPolicy.IF_NOT_PRESENT
        if self.spec.filter.pull_policy is not None:
            return self.spec.filter.pull_policy
        return PullPolicy.ALWAYS if image.tag == "latest" else PullPolicy.IF_NOT_PRESENT
