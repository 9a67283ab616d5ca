"""The API server refuses one kind of wasmer's writes by an admission policy, which stops a leader between two of its writes.

Invariant: refused writes are in the audit log with status 403, so a test can wait for the effect.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import yaml

from tests.parts.audit import Entry
from tests.parts.installation import ACCOUNT, Installation

Denied = Literal["envoyfilters", "autowasms/status"]

_NAME = "deny-wasmer"
_GROUPS = {"envoyfilters": "networking.istio.io", "autowasms/status": "wasm.tcm.io"}


@dataclass(frozen=True, slots=True)
class Denial:
    """A policy that is in force."""

    installation: Installation
    resource: Denied
    since: int

    async def bit(self, *, timeout: float = 30) -> Entry:
        """The first write that was refused. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while True:
                for one in await self.installation.writes(self.since):
                    if one.resource == self.resource and one.code == 403:
                        return one
                await asyncio.sleep(0.05)


@asynccontextmanager
async def denied(installation: Installation, resource: Denied) -> AsyncIterator[Denial]:
    """Refuse the writes until the context ends. Of the status, only writes of `Synced` are refused."""
    kubectl = installation.kubectl
    expression = "true" if resource == "envoyfilters" else "object.status.phase == 'Synced'"
    text = yaml.safe_dump_all(_policy(resource, expression))
    await kubectl.run("apply", "-f", "-", stdin=text.encode())
    try:
        async with asyncio.timeout(30):
            while not await _in_force(installation, resource):
                await asyncio.sleep(0.1)
        yield Denial(installation, resource, await installation.audit.position())
    finally:
        await kubectl.run("delete", "validatingadmissionpolicybinding", _NAME)
        await kubectl.run("delete", "validatingadmissionpolicy", _NAME)
        async with asyncio.timeout(30):
            while await _in_force(installation, resource):
                await asyncio.sleep(0.1)


async def _in_force(installation: Installation, resource: Denied) -> bool:
    kind = "envoyfilter" if resource == "envoyfilters" else "aw"
    found = json.loads((await installation.kubectl.run("get", kind, "data", "-o=json")).stdout)
    found["metadata"].setdefault("labels", {})["try"] = "it"
    if resource == "autowasms/status":
        found["status"] = {**found["status"], "phase": "Synced"}
    subresource = ["--subresource=status"] if resource == "autowasms/status" else []
    said = await installation.kubectl.run(
        *("replace", "--dry-run=server", f"--as={ACCOUNT}", *subresource, "-f", "-"),
        stdin=json.dumps(found).encode(),
        check=False,
    )
    return said.returncode != 0 and _NAME in said.stderr


def _policy(resource: Denied, expression: str) -> list[dict[str, object]]:
    rule = {
        "apiGroups": [_GROUPS[resource]],
        "apiVersions": ["*"],
        "operations": ["CREATE", "UPDATE"],
        "resources": [resource],
    }
    wasmer = f"request.userInfo.username == '{ACCOUNT}'"
    return [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": _NAME},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [rule]},
                "validations": [
                    {"expression": f"!({wasmer} && {expression})", "reason": "Forbidden"}
                ],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": _NAME},
            "spec": {"policyName": _NAME, "validationActions": ["Deny"]},
        },
    ]
