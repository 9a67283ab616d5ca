"""What a change that an informer shows means: which indexes follow it, and which keys it wakes.

Not the informers (`informers.py`) nor the work. Invariants: nothing here waits; the echo of our own write wakes nobody.
"""

from collections.abc import Callable, Mapping
from typing import Any

from autowasm.controller.pods.matching import PodMatcher, PodSelector
from autowasm.controller.pods.podindex import PodAddresses
from autowasm.controller.pods.podstatus import PodStatus
from autowasm.controller.publishing.overlay import WriteOverlay
from autowasm.kube.pods import Pod
from autowasm.kube.resources import ObjectKey

Document = Mapping[str, Any]


class AutoWasmObserver:
    """Keeps the matcher's selectors. `root`: the mesh's root namespace."""

    def __init__(
        self,
        view: WriteOverlay,
        *,
        matcher: PodMatcher,
        pod_status: PodStatus,
        root: str,
        changed: Callable[[ObjectKey], None],
    ) -> None:
        self._view = view
        self._matcher = matcher
        self._pod_status = pod_status
        self._root = root
        self._changed = changed

    def on_add(self, key: ObjectKey, new: Document, /, *, initial: bool) -> None:
        """One more."""
        self._seen(key, new)

    def on_update(self, key: ObjectKey, _old: Document, new: Document, /) -> None:
        """Also each resync."""
        self._seen(key, new)

    def on_delete(self, key: ObjectKey, _old: Document, /) -> None:
        """It is gone."""
        self._seen(key, None)

    def _seen(self, key: ObjectKey, document: Document | None) -> None:
        echo = self._view.observed(key, document)
        selector = _selector(key, document, root=self._root)
        if selector is None:
            self._matcher.remove_selector(key)
        elif self._matcher.set_selector(key, selector):
            self._pod_status.touch(key)
        if document is None:
            self._pod_status.forget(key)
        if not echo:
            self._changed(key)


class EnvoyFilterObserver:
    """Of those with our label; each has its AutoWasm's name."""

    def __init__(self, view: WriteOverlay, *, changed: Callable[[ObjectKey], None]) -> None:
        self._view = view
        self._changed = changed

    def on_add(self, key: ObjectKey, new: Document, /, *, initial: bool) -> None:
        """One more."""
        self._seen(key, new)

    def on_update(self, key: ObjectKey, _old: Document, new: Document, /) -> None:
        """Whoever changed it."""
        self._seen(key, new)

    def on_delete(self, key: ObjectKey, _old: Document, /) -> None:
        """It is gone, or without our label."""
        self._seen(key, None)

    def _seen(self, key: ObjectKey, document: Document | None) -> None:
        if not self._view.observed(key, document):
            self._changed(key)


class PodObserver:
    """Keeps who has which address and which AutoWasms match; of these, `status.pods` may have to change."""

    def __init__(
        self, matcher: PodMatcher, *, addresses: PodAddresses, pod_status: PodStatus
    ) -> None:
        self._matcher = matcher
        self._addresses = addresses
        self._pod_status = pod_status

    def on_add(self, _key: ObjectKey, new: Pod, /, *, initial: bool) -> None:
        """One more."""
        self._seen(None, new)

    def on_update(self, _key: ObjectKey, old: Pod, new: Pod, /) -> None:
        """Also each of its states."""
        self._seen(old, new)

    def on_delete(self, _key: ObjectKey, old: Pod, /) -> None:
        """It is gone."""
        self._seen(old, None)

    def _seen(self, old: Pod | None, new: Pod | None) -> None:
        self._addresses.pod_changed(old, new)
        for key in self._matcher.pod_changed(old, new):
            self._pod_status.touch(key)


def _selector(key: ObjectKey, document: Document | None, *, root: str) -> PodSelector | None:
    """None for what is gone, or is not valid: validation says that elsewhere."""
    try:
        labels = (document or {})["spec"]["selector"]["matchLabels"]
        pairs = tuple(sorted((str(name), str(value)) for name, value in labels.items()))
    except (KeyError, TypeError, AttributeError):
        return None
    return PodSelector(None if key.namespace == root else key.namespace, pairs)
