"""Pods as slim rows: what is needed to match them and to know them again, some 400 bytes each, not 60 KB.

Not a Pod model. Invariant: rows of Pods with the same labels share one tuple, so a cluster of many replicas costs little
and a selector need only look at each label set once.
"""

from datetime import datetime
from typing import Final

import msgspec

from autowasm.kube.codec import Codec
from autowasm.kube.resources import ObjectKey

LabelSet = tuple[tuple[str, str], ...]
"""Labels as pairs in order of their keys: hashable, `dict(labels)` for reading."""

ISTIO_SIDECAR: Final = frozenset({"istio-proxy"})
"""Names of containers, or of init containers that stay (native sidecars), that are the proxy."""

_SHARED_LABEL_SETS: Final = 16_384
"""Of a generation; two are kept. Label sets of Jobs and rollouts that are gone fall out of use with them."""


class Pod(msgspec.Struct, frozen=True, gc=False):
    """One row. It refers to nothing that refers back, so the garbage collector need not look at it."""

    namespace: str
    name: str
    uid: bytes
    """16 bytes."""
    labels: LabelSet
    ips: str
    """All Pod IPs, separated by commas: one short text is half of a tuple with one text in it."""
    phase: str
    started: int
    """Seconds since the epoch at which the kubelet took the Pod; 0 if it has not yet."""
    injected: bool
    """Whether it has a sidecar."""
    ready: bool = True
    """Whether the kubelet finds it ready; a Pod without that condition counts as ready."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Pod IPs, the first one first."""
        return tuple(self.ips.split(",")) if self.ips else ()


class _Meta(msgspec.Struct, gc=False):
    name: str
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815 as on the wire
    labels: dict[str, str] | None = None


class _Container(msgspec.Struct, gc=False):
    name: str = ""


class _Spec(msgspec.Struct, gc=False):
    containers: list[_Container] = []
    initContainers: list[_Container] = []  # noqa: N815


class _PodIp(msgspec.Struct, gc=False):
    ip: str = ""


class _Condition(msgspec.Struct, gc=False):
    type: str = ""
    status: str = ""


class _Status(msgspec.Struct, gc=False):
    phase: str = "Unknown"
    podIP: str = ""  # noqa: N815
    podIPs: list[_PodIp] = []  # noqa: N815
    startTime: datetime | None = None  # noqa: N815
    conditions: list[_Condition] = []


class _Wire(msgspec.Struct, gc=False):
    metadata: _Meta
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


class _Sharing:
    """Hands out one and the same object for equal texts and label sets. Forgets what was not asked for lately.

    Two generations, as old values cannot tell that nobody uses them any more: losing one early costs memory, no more.
    """

    def __init__(self, size: int = _SHARED_LABEL_SETS) -> None:
        self._size = size
        self._texts: dict[str, str] = {}
        self._pairs: dict[tuple[str, str], tuple[str, str]] = {}
        self._young: dict[LabelSet, LabelSet] = {}
        self._old: dict[LabelSet, LabelSet] = {}

    def text(self, text: str) -> str:
        return self._texts.setdefault(text, text)

    def labels(self, labels: dict[str, str] | None) -> LabelSet:
        if not labels:
            return ()
        # An API server writes maps in order of their keys, so that they are nearly always found as they came.
        wanted: LabelSet = tuple(labels.items())
        known = self._young.get(wanted)
        if known is not None:
            return known
        wanted = tuple(sorted(wanted))
        known = self._young.get(wanted)
        if known is not None:
            return known
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
            self._texts, self._pairs = {}, {}
        known = self._old.get(wanted)
        if known is None:
            known = tuple(self._pair(pair) for pair in wanted)
        self._young[known] = known
        return known

    def _pair(self, pair: tuple[str, str]) -> tuple[str, str]:
        known = self._pairs.get(pair)
        if known is None:
            known = (self.text(pair[0]), self.text(pair[1]))
            self._pairs[known] = known
        return known


def pod_codec(*, sidecars: frozenset[str] = ISTIO_SIDECAR) -> Codec[Pod]:
    """Decodes Pods into rows. `sidecars`: names of containers that count as one."""
    sharing = _Sharing()

    def row(wire: _Wire) -> Pod:
        meta, status = wire.metadata, wire.status
        started = status.startTime
        return Pod(
            sharing.text(meta.namespace),
            meta.name,
            _uid(meta.uid),
            sharing.labels(meta.labels),
            status.podIP if len(status.podIPs) < 2 else ",".join(ip.ip for ip in status.podIPs),
            sharing.text(status.phase),
            int(started.timestamp()) if started is not None else 0,
            not sidecars.isdisjoint([container.name for container in wire.spec.containers])
            or not sidecars.isdisjoint([container.name for container in wire.spec.initContainers]),
            not [True for one in status.conditions if one.type == "Ready" and one.status != "True"],
        )

    return Codec(_Wire, transform=row, meta=_meta)


def _meta(wire: _Wire) -> tuple[ObjectKey, str]:
    return ObjectKey(wire.metadata.namespace, wire.metadata.name), wire.metadata.resourceVersion


def _uid(text: str) -> bytes:
    try:
        uid = bytes.fromhex(
            text.replace("-", "")
        )  # `uuid.UUID` says the same in four times the time
    except ValueError:
        uid = b""
    # The API promises no form; all that we need is equality.
    return uid if len(uid) == 16 else text.encode()[:16].ljust(16, b"\0")
