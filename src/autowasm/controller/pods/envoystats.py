"""SidecarStats: the statistics of one sidecar that show the state of a plug-in, parsed from its Prometheus page. Pure.

`statsreader.py` gets the page, `runstate.py` judges. Every Istio sidecar serves the page on port 15090: Istio's bootstrap always
includes the prefixes `wasm`, `server` and `listener_manager`. Invariants: any bytes are parsed without an error, in time linear in
their length, because the owner of a Pod controls them; a statistic that the page does not have is None or absent, never 0.

Sources: Envoy `prometheus_stats.cc` (names, labels), `wasm/stats_handler.h` and `plugin_config` (statistics); Istio
`pkg/bootstrap/config.go` (what is included), `envoy_bootstrap.json` (tags), `istio_stats.cc` in istio/proxy (requests).
"""

import enum
import re
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

PORT: Final = 15090
"""The listener `http_prometheus_port` of Istio's bootstrap."""

FILTER: Final = "|".join(
    (
        r"^wasm\.",
        r"^server\.(concurrency|uptime)$",
        r"^listener_manager\.(listener_(create_success|added|modified|in_place_updated)|total_(listeners_warming|listeners_draining|filter_chains_draining)|lds\.update_rejected)$",
        r"istio_requests_total\.reporter\.destination",
        r"^http\..+\.downstream_rq_[1-5]xx$",
    )
)
"""Envoy matches it against its own names, before it extracts the tags."""
PATH: Final = "/stats/prometheus"
TARGET: Final = f"{PATH}?filter={quote(FILTER, safe='')}"
"""Path and query of the request."""

MAX_PLUGINS: Final = 256
"""Plug-ins of one page; further ones are ignored, because readings are kept in memory."""
MAX_SERIES: Final = 512
"""Characters of a series name. Kubernetes names have at most 253."""
_STEP: Final = 32 * 1024
"""Bytes of a page that are parsed at once: about a millisecond."""
_SAMPLE: Final = re.compile(
    rb"^(istio_requests_total|envoy_(?:wasm|server|listener_manager|http)\w{0,1000})(?:\{([^\n]{0,8000})\})? (\d{1,18})$",
    re.MULTILINE,
)
"""Istio's longest series have some 1500 characters; lines longer than this limit are not Istio's."""
_LABEL: Final = re.compile(r'\b(\w+)="((?:[^"\\]|\\.)*)"')
"""It begins at a word boundary, so that a long word is tried only once."""
_RELOAD: Final = re.compile(r"envoy_wasm_(?:(\w+)_)?vm_reload(?:_(success|failure|backoff))?")
_VMS: Final = "envoy_wasm_envoy_wasm_runtime_v8_active"
_CREATED_VMS: Final = "envoy_wasm_envoy_wasm_runtime_v8_created"
_FETCHED: Final = frozenset(
    {"envoy_wasm_remote_load_fetch_successes", "envoy_wasm_remote_load_cache_hits"}
)
_FETCH_FAILURES: Final = "envoy_wasm_remote_load_fetch_failures"
_WARMING: Final = "envoy_listener_manager_total_listeners_warming"
_REJECTED: Final = "envoy_listener_manager_lds_update_rejected"
_CREATED: Final = "envoy_listener_manager_listener_create_success"
_CHANGED: Final = tuple(
    f"envoy_listener_manager_listener_{how}" for how in ("added", "modified", "in_place_updated")
)
_DRAINING: Final = tuple(
    f"envoy_listener_manager_total_{what}_draining" for what in ("listeners", "filter_chains")
)
_CONCURRENCY: Final = "envoy_server_concurrency"
_UPTIME: Final = "envoy_server_uptime"
_ISTIO_REQUESTS: Final = "istio_requests_total"
_HTTP_REQUESTS: Final = frozenset({"envoy_http_downstream_rq_xx", "envoy_http_downstream_rq"})
"""With Envoy's own tags, and with those of Istio's bootstrap."""
_INBOUND: Final = "inbound"
_NO_TRAFFIC: Final = frozenset({"admin", "stats", "agent"})
"""Listeners of Envoy and Istio themselves."""
_TAGS: Final = tuple(
    (tag, re.compile(rf"({tag}\.(.+?)\.)"))  # as in Istio's bootstrap, unanchored
    for tag in ("cache", "component")
)
_UNSAFE: Final = re.compile(r"[^a-zA-Z0-9_]")


@dataclass(frozen=True, slots=True)
class ReloadCounts:
    """How often Envoy replaced a crashed VM of one plug-in (`FAIL_RELOAD`). Envoy 1.33 and later."""

    success: int = 0
    failure: int = 0
    backoff: int = 0
    """Requests that met a crashed VM too soon after its last reload."""

    @property
    def total(self) -> int:
        """The sum: each reload follows a crash."""
        return self.success + self.failure + self.backoff


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests that a sidecar received for its service, by class of the response's status.

    Class 5 includes the service's own responses. Class 0: no response, for example because the client disconnected.
    """

    by_class: Mapping[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.by_class.values())

    @property
    def failed(self) -> int:
        """Requests with a status of 500 or more."""
        return self.by_class.get(5, 0)

    def since(self, before: "Requests") -> "Requests | None":
        """The requests since `before`; None if a counter went back, because their number is then unknown."""
        classes = self.by_class.keys() | before.by_class.keys()
        grown = {one: self.by_class.get(one, 0) - before.by_class.get(one, 0) for one in classes}
        return Requests(grown) if all(count >= 0 for count in grown.values()) else None


@dataclass(frozen=True, slots=True)
class SidecarStats:
    """One reading of one Envoy process.

    The counters of fetches and the gauge of VMs count for the whole process. They restart at 0 when the last filter chain that
    uses a plug-in ends, even without a restart of Envoy.
    """

    read_at: float = 0.0
    """Seconds on the monotonic clock of the reader."""
    plugins: Mapping[str, ReloadCounts] = field(default_factory=dict)
    """By series (`series_of`): all plug-ins that the process knows, including those of draining filter chains."""
    active_vms: int | None = None
    """V8 VMs of all plug-ins: for each running plug-in, one per worker and two more. None: none was ever started.

    May be too low, or after the end of a plug-in too high, until the next VM starts or ends: each thread sets the gauge to its own
    count (`LifecycleStatsHandler::onEvent`, envoy source/extensions/common/wasm/stats_handler.cc).
    """
    created_vms: int = 0
    """V8 VMs that were started: for each start of a plug-in, those that run, and one that ends after it was configured."""
    fetched: int = 0
    """Modules that arrived, from a server or from the cache of the process."""
    fetch_failures: int = 0
    """Fetches that failed after the last retry."""
    warming: int | None = None
    """Listeners that wait for a dependency, such as a module, before they are used."""
    rejected: int | None = None
    """Listener updates that Envoy rejected."""
    listeners_created: int | None = None
    listeners_changed: int | None = None
    """Listeners that were added or changed, as a whole or in some filter chains."""
    draining: int | None = None
    """Listeners and filter chains that were replaced, but still serve their open connections."""
    concurrency: int | None = None
    """Worker threads."""
    uptime: int | None = None
    """Seconds; Envoy updates it every five."""
    requests: Requests | None = None
    """None: the page has no such statistic, because there was no request yet or requests are not counted."""

    @property
    def is_envoy(self) -> bool:
        """Whether the page has the statistics that Istio's bootstrap always includes: only then is an absent plug-in evidence."""
        return self.concurrency is not None and self.listeners_created is not None

    def reloads_of(self, plugin: str) -> ReloadCounts | None:
        """The counters of the plug-in with this name (`config.name`); None if the process does not know it."""
        for series in series_of(plugin):
            if series in self.plugins:
                return self.plugins[series]
        return None

    def others(self, plugin: str) -> frozenset[str]:
        """The series of all other plug-ins."""
        return frozenset(self.plugins).difference(series_of(plugin))


class ReadFailure(enum.Enum):
    """Why a sidecar was not read; the values are metric labels."""

    NO_SIDECAR = "no_sidecar"
    NO_ADDRESS = "no_address"
    SHARED_ADDRESS = "shared_address"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    BROKEN = "broken"
    STATUS = "status"
    TOO_LARGE = "too_large"
    NOT_PROMETHEUS = "not_prometheus"


@dataclass(frozen=True, slots=True)
class UnreadStats:
    """A sidecar whose statistics were not read. `detail`: the status or the number of bytes, for people."""

    why: ReadFailure
    detail: str = ""

    @property
    def message(self) -> str:
        """A clause without a subject, such as `sent no statistics in time`."""
        return _UNREAD[self.why].format(detail=self.detail)


_UNREAD: Final = {
    ReadFailure.NO_SIDECAR: "has no sidecar",
    ReadFailure.NO_ADDRESS: "has no address, or has ended",
    ReadFailure.SHARED_ADDRESS: "shares its address with another Pod, so the statistics may be those of either",
    ReadFailure.REFUSED: "did not accept a connection to its statistics port ({detail}): it is starting, uses another port, or has no Istio sidecar",
    ReadFailure.TIMEOUT: "sent no statistics in time: a NetworkPolicy may forbid the connection from wasmer",
    ReadFailure.BROKEN: "sent a truncated response, or one that is not HTTP",
    ReadFailure.STATUS: "answered with status {detail} instead of statistics",
    ReadFailure.TOO_LARGE: "sent more than {detail} bytes of statistics",
    ReadFailure.NOT_PROMETHEUS: "sent a response that is not in the Prometheus text format",
}


Reading = SidecarStats | UnreadStats


def series_of(plugin: str) -> tuple[str, ...]:
    """The names of a plug-in's statistics on a Prometheus page: as Envoy writes them, and after Istio's tags are extracted.

    Envoy replaces characters that Prometheus does not allow in names, so `a-b` and `a.b` are the same. Istio's bootstrap extracts
    tags from any statistic, even from the name of a plug-in that contains `cache.` or `component.`.
    """
    rest, labels = f"wasm.{plugin}.vm_reload", dict[str, str]()
    whole = _reload_series(rest, {})
    for tag, pattern in _TAGS:
        if found := pattern.search(rest):
            labels[tag] = found[2]
            rest = rest.replace(found[1], "", 1)
    return (whole, _reload_series(rest, labels)) if labels else (whole,)


def _reload_series(name: str, labels: Mapping[str, str]) -> str:
    found = _RELOAD.fullmatch("envoy_" + _UNSAFE.sub("_", name))
    return _series(found[1] or "" if found else "", labels)


def _series(name: str, labels: Mapping[str, str]) -> str:
    if not labels:
        return name
    return name + "{" + ",".join(f"{key}={labels[key]}" for key in sorted(labels)) + "}"


def parse(page: bytes, *, read_at: float = 0.0) -> SidecarStats:
    """Parse a Prometheus page, in one piece."""
    steps = parse_in_steps(page, read_at=read_at)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            stats: SidecarStats = end.value
            return stats


def parse_in_steps(page: bytes, *, read_at: float = 0.0) -> Generator[None, None, SidecarStats]:
    """Parse a Prometheus page, for `in_steps`. Unknown lines are skipped; of a repeated line, the last one counts."""
    found = _Page()
    begin = 0
    while begin < len(page):
        end = page.find(b"\n", begin + _STEP) + 1 or len(page)
        for sample in _SAMPLE.finditer(page, begin, end):
            found.add(
                sample[1].decode(), (sample[2] or b"").decode(errors="replace"), int(sample[3])
            )
        begin = end
        yield
    return found.stats(read_at)


def is_prometheus(page: bytes) -> bool:
    """Whether the page is in Prometheus text format, judged by its first line. An empty page is."""
    first = page[:1024].lstrip().split(b"\n", 1)[0]
    return not first or bool(re.match(rb"#|[a-zA-Z_:][a-zA-Z0-9_:]*(\{.*)?[ }]", first))


class _Page:
    def __init__(self) -> None:
        self._single: dict[str, int] = {}
        self._plugins: dict[str, dict[str, int]] = {}
        self._istio: dict[str, tuple[int, int]] = {}
        self._http: dict[tuple[str, int], int] = {}

    def add(self, name: str, text: str, value: int) -> None:
        if name == _ISTIO_REQUESTS:
            labels = dict(_LABEL.findall(text))
            if labels.get("reporter") == "destination":
                self._istio[text] = _class(labels.get("response_code", "")), value
        elif name in _HTTP_REQUESTS:
            self._add_http(dict(_LABEL.findall(text)), value)
        elif reload := _RELOAD.fullmatch(name):
            self._add_reload(reload, _series(reload[1] or "", dict(_LABEL.findall(text))), value)
        elif not text:
            self._single[name] = value

    def _add_reload(self, found: re.Match[str], series: str, value: int) -> None:
        is_new = series not in self._plugins
        if is_new and (len(self._plugins) >= MAX_PLUGINS or len(series) > MAX_SERIES):
            return
        self._plugins.setdefault(series, {})[found[2] or ""] = value

    def _add_http(self, labels: Mapping[str, str], value: int) -> None:
        def tag(name: str) -> str:
            return labels.get(f"envoy_{name}", labels.get(name, ""))

        code = tag("response_code_class")
        if code:
            self._http[tag("http_conn_manager_prefix"), _class(code)] = value

    def stats(self, read_at: float) -> SidecarStats:
        single = self._single
        return SidecarStats(
            read_at=read_at,
            plugins={
                series: ReloadCounts(
                    success=counts.get("success", 0),
                    failure=counts.get("failure", 0),
                    backoff=counts.get("backoff", 0),
                )
                for series, counts in self._plugins.items()
            },
            active_vms=single.get(_VMS),
            created_vms=single.get(_CREATED_VMS, 0),
            fetched=sum(single.get(name, 0) for name in _FETCHED),
            fetch_failures=single.get(_FETCH_FAILURES, 0),
            warming=single.get(_WARMING),
            rejected=single.get(_REJECTED),
            listeners_created=single.get(_CREATED),
            listeners_changed=_sum(single, _CHANGED),
            draining=_sum(single, _DRAINING),
            concurrency=single.get(_CONCURRENCY),
            uptime=single.get(_UPTIME),
            requests=self._requests(),
        )

    def _requests(self) -> Requests | None:
        if self._istio:
            return _summed(self._istio.values())
        prefixes = {prefix for prefix, _ in self._http}
        wanted = {one for one in prefixes if one.startswith(_INBOUND)} or prefixes - _NO_TRAFFIC
        counts = [(code, value) for (prefix, code), value in self._http.items() if prefix in wanted]
        return _summed(counts) if counts else None


def _sum(single: Mapping[str, int], names: Iterable[str]) -> int | None:
    """None if the page has none of them."""
    found = [single[name] for name in names if name in single]
    return sum(found) if found else None


def _class(code: str) -> int:
    """1 to 5 for a status code or class (`503`, `5xx`, `5`); otherwise 0."""
    return int(code[0]) if code[:1] in {"1", "2", "3", "4", "5"} else 0


def _summed(counts: Iterable[tuple[int, int]]) -> Requests:
    by_class: dict[int, int] = {}
    for code, value in counts:
        by_class[code] = by_class.get(code, 0) + value
    return Requests(by_class)
