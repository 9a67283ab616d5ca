"""The verdict of this machine on a module with its configuration, for `wasmc inspect --start` and `wasmc plan`.

Invariant: the verdict and its wording are those of wasmer's pre-flight; the module runs in the sandbox, in this process.
"""

import time

from autowasm.cli.options import EnvoyOffer
from autowasm.preflight.verdicts import described
from autowasm.reasons import Reason
from autowasm.sandbox.engine import compile_module, make_engine
from autowasm.sandbox.errors import CannotCompile
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.verdict import judge, of_uncompilable


def judged(module: bytes, plugin: Plugin, offer: EnvoyOffer) -> tuple[str, Reason, str]:
    """Status, reason and message of the condition `Starts`. Blocks: seconds for a large module."""
    try:
        compiled = compile_module(make_engine(), module)
    except CannotCompile as error:
        return described(of_uncompilable(error), plugin)
    verdict = judge(
        compiled,
        plugin,
        envoy=offer["envoy"],
        extra_imports=offer["allow_imports"],
        started_at=time.time_ns(),
    )
    return described(verdict, plugin)
