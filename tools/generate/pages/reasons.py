"""docs/reference/conditions.md: every value of `autowasm.reasons.Reason`, and its meaning."""

from autowasm.reasons import Progress, Reason, Topic
from tools.generate import markdown

_INTRODUCTION = """\
# Phases, conditions and reasons

`kubectl get aw` shows the phase; `kubectl describe aw NAME` the conditions. Reasons are stable: alerts may use them. The message says what is
wrong, where, and what to do. `make reference` generates this page.

| Phase | Means |
|---|---|
| `Pending` | not processed yet |
| `Fetching` | a fetch is in progress; the previous module, if any, stays in place |
| `Progressing` | a staged rollout has begun and not ended: `status.rollout` tells its step |
| `Synced` | the module is fetched, checked and stored, and the EnvoyFilter is in place. It does not mean that Envoy runs it ([proof](../explanation/proof.md)) |
| `Degraded` | the last attempt failed; the previous module is in place |
| `Failed` | the last attempt failed, and nothing is published |

| Condition | True when |
|---|---|
| `Fetched` | the module that the spec names is fetched, checked and stored |
| `Published` | the EnvoyFilter is in place |
| `Ready` | both are True for this generation; to wait for it: `kubectl wait --for=condition=Ready aw/NAME` |
| `Reconciling` | `Ready` is not True, and wasmer works on it or retries. Absent otherwise |
| `Stalled` | `Ready` is not True, and only a change by a person can make it True: of the object, its source, a login, the policy. Absent otherwise |
| `Starts` | the module starts with its configuration, as far as that is known before it is published ([pre-flight](../explanation/preflight.md)). False: it does not. Unknown: it may, or there is no verdict. Absent: it was published before, or the mode is `off` |
| `Loaded` | the sidecar of every matched Pod downloaded the module; Unknown if wasmer cannot determine it |
| `Running` | the module runs in the sidecar of every matched Pod that has one; Unknown if their statistics do not show it |

Each condition has a message. `Reconciling` and `Stalled` are those of kstatus, by which [deployment tools](../how-to/gitops.md) wait. In the tables, *with it* is
the one that is True while `Ready` has the reason; `-`: `Ready` never has it.
"""


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for topic in Topic:
        rows = (
            (f"`{one}`", _with_it(one.progress), one.meaning)
            for one in Reason
            if one.topic is topic
        )
        table = markdown.table("| reason | with it | means |", rows)
        parts.append(f"## {topic.value}\n\n{table}")
    parts.append(
        "The reasons of Pods (`status.pods.missing`, and `Loaded`) are also in [proof](../explanation/proof.md)."
    )
    return "\n".join(parts) + "\n"


def _with_it(progress: Progress) -> str:
    if progress is Progress.DONE:
        return "neither"
    return "-" if progress is Progress.ELSEWHERE else f"`{progress.value}`"
