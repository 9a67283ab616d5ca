"""Whatever a sidecar answers: parsing ends without an error, and no judgement claims what the figures do not prove."""

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from autowasm.controller.pods.envoystats import (
    ReloadCounts,
    Requests,
    SidecarStats,
    parse,
    parse_in_steps,
    series_of,
)
from autowasm.controller.pods.runstate import RunState, judge
from tests.fakes.generators import finished

COUNTS = st.integers(0, 10**6)
NAMES = st.sampled_from(["a", "b-c", "d.e", "hello-cache.x-012"])
LINES = st.one_of(
    st.binary(max_size=80),
    st.sampled_from([b"# TYPE x counter", b"", b"envoy_wasm_vm_reload{} 99999999999999999999"]),
    st.builds(
        lambda name, labels, value: name + b"{" + labels + b"} " + value,
        st.sampled_from([b"envoy_wasm_x", b"istio_requests_total", b"envoy_http_downstream_rq_xx"]),
        st.binary(max_size=40),
        st.binary(max_size=8),
    ),
)


@st.composite
def readings(draw: st.DrawFn) -> SidecarStats:
    plugins = draw(st.dictionaries(NAMES, st.builds(ReloadCounts, *[st.integers(0, 2)] * 3)))
    few = st.integers(0, 3)
    return SidecarStats(
        read_at=float(draw(st.integers(0, 1000))),
        plugins={series_of(name)[0]: counts for name, counts in plugins.items()},
        active_vms=draw(st.none() | st.integers(0, 20)),
        fetched=draw(few),
        fetch_failures=draw(few),
        warming=draw(few),
        rejected=draw(few),
        listeners_created=draw(few),
        concurrency=draw(st.integers(1, 4)),
        uptime=draw(st.integers(0, 1000)),
        requests=draw(
            st.none() | st.builds(Requests, st.dictionaries(st.integers(0, 5), COUNTS, min_size=1))
        ),
    )


def page(stats: SidecarStats) -> list[bytes]:
    """The lines of the page that has these statistics."""
    named = {
        "wasm_envoy_wasm_runtime_v8_active": stats.active_vms,
        "wasm_remote_load_fetch_successes": stats.fetched,
        "wasm_remote_load_fetch_failures": stats.fetch_failures,
        "listener_manager_total_listeners_warming": stats.warming,
        "listener_manager_lds_update_rejected": stats.rejected,
        "listener_manager_listener_create_success": stats.listeners_created,
        "server_concurrency": stats.concurrency,
        "server_uptime": stats.uptime,
    }
    lines = [f"envoy_{name}{{}} {value}" for name, value in named.items() if value is not None]
    for series, counts in stats.plugins.items():
        lines.append(f"envoy_wasm_{series}_vm_reload{{}} 0")
        lines += [
            f"envoy_wasm_{series}_vm_reload_{what}{{}} {getattr(counts, what)}"
            for what in ("success", "failure", "backoff")
        ]
    for code, count in stats.requests.by_class.items() if stats.requests is not None else ():
        labels = f'reporter="destination",response_code="{code}00"'
        lines.append(f"istio_requests_total{{{labels}}} {count}")
    return [line.encode() for line in lines]


@given(st.binary(max_size=4000))
def test_any_bytes_are_parsed(content: bytes) -> None:
    parse(content)


@given(st.lists(LINES, max_size=30))
def test_any_lines_are_parsed(lines: list[bytes]) -> None:
    parse(b"\n".join(lines))


@given(
    readings(), st.randoms(), st.lists(st.binary(max_size=60).map(lambda b: b"?" + b), max_size=9)
)
def test_page_parses_in_any_order_and_among_unknown_lines(
    stats: SidecarStats, random: Random, junk: list[bytes]
) -> None:
    lines = [*page(stats), *(one.replace(b"\n", b"?") for one in junk)]
    random.shuffle(lines)
    assert parse(b"\n".join(lines) + b"\n", read_at=stats.read_at) == stats


@given(readings(), st.integers(0, 70_000))
def test_a_long_page_is_read_in_steps_without_losing_a_line(
    stats: SidecarStats, padding: int
) -> None:
    lines = page(stats)
    half = len(lines) // 2
    filler = b"# " + b"x" * padding
    content = b"\n".join([*lines[:half], filler, *lines[half:], filler])
    assert finished(parse_in_steps(content, read_at=stats.read_at)) == stats


@given(st.none() | readings(), readings(), NAMES)
def test_no_judgement_claims_more_than_the_figures(
    before: SidecarStats | None, after: SidecarStats, plugin: str
) -> None:
    report = judge(before, after, plugin)
    vms, each = after.active_vms or 0, (after.concurrency or 0) + 2
    known = after.reloads_of(plugin) is not None
    assert (report.state is RunState.NOT_ACCEPTED) == (not known)
    if report.state is RunState.RUNNING:
        assert vms >= each, "its own VMs are there"
        assert report.figures.reloads.total == 0
    if report.state is RunState.CRASHING:
        assert report.figures.reloads.total > 0
    if report.state is RunState.CONFIGURATION_REFUSED and vms:
        assert before is not None, "without an earlier reading the VMs may be its own"
    if report.state is RunState.FETCH_FAILED:
        assert report.figures.fetch_failures or after.active_vms is None
    if before is not None and report.figures.requests is not None:
        assert all(count >= 0 for count in report.figures.requests.by_class.values())


@given(readings(), NAMES)
def test_an_earlier_reading_of_the_same_figures_finds_no_new_failure(
    stats: SidecarStats, plugin: str
) -> None:
    again = replace(stats, read_at=stats.read_at + 1)
    report = judge(stats, again, plugin)
    assert report.state is not RunState.CRASHING
    assert report.figures.fetch_failures == 0
    assert report.figures.requests is None or report.figures.requests.total == 0
