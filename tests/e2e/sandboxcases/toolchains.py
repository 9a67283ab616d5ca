"""Filters from real toolchains, with requests that show the effect of each."""

from collections.abc import Iterator
from typing import Any

from autowasm.sandbox.clusteranswers import HttpAnswer
from autowasm.sandbox.message import Request, Response
from tests.parts import filters
from tests.parts.comparison import Case

_BODY = bytes(range(256)) * 20
_UNCOMMON = 'say "hällo" to: {a: [1]}\n\t- \\ & # %s\n '
_REQUESTS: dict[str, dict[str, Any]] = {
    "echo": {
        "requests": [Request(headers=(("x-echo", "any"),)), Request()],
        "configuration": _UNCOMMON,
        "vm_configuration": "for the VM",
        "environment": {"KEY": "value"},
    },
    "deny": {},
    "fail-on-request": {
        "requests": [Request(), Request(headers=(("x-fail", "request"),)), Request()]
    },
    "refuse-config": {"configuration": "accepted"},
    "buffer-body": {
        "requests": [
            Request(
                "POST",
                headers=(("content-length", str(len(_BODY))),),
                body=(_BODY[:2000], _BODY[2000:]),
            )
        ]
    },
}


def cases() -> Iterator[Case]:
    """Each filter with each toolchain that it is written for, with its requests."""
    for name, toolchain in filters.every():
        if name == "probe":
            continue
        module = filters.build(name, toolchain=toolchain).read_bytes()
        case_name = f"{name}-{toolchain}"
        if name == "callout":
            cluster = f"cluster-{case_name}"
            answer = HttpAnswer(207, (("content-length", "2"),), b"hi", delay=0)
            for path, target in (("known", cluster), ("unknown", "nowhere")):
                yield Case(
                    f"{case_name}-{path}",
                    module,
                    f"{target} /x",
                    clusters={cluster: answer} if path == "known" else {},
                    root_id=name,
                )
            continue
        yield Case(case_name, module, root_id=name, **_REQUESTS[name])
    module = filters.build("fail-on-request", toolchain="c").read_bytes()
    requests = [Request(headers=(("x-fail", "response"),)), Request()]
    yield Case("fail-on-response-c", module, requests=requests, response=Response(204))
