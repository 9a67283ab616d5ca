"""The work of a child of the fork server: compile a module, or run one.

There are two kinds of children, because every later run trusts the compiled code: a child that compiles never runs the module,
and only such a child has a descriptor to write code to. A child that runs a module has a read-only descriptor of the code. So a
module that takes over its child can falsify the verdict on itself, but nothing that others use. Invariant: a child is isolated
before it reads a byte of a tenant.
"""

import errno
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import wasmtime

from autowasm.envoyversion import OLDEST_ENVOY
from autowasm.limits import PreflightLimits
from autowasm.preflight import isolation, messages
from autowasm.preflight.forkserver import Work
from autowasm.preflight.isolation import NotIsolated, Rlimits
from autowasm.preflight.messages import COMPILE, RUN, Answer, NoVerdictReason, Problem, Request
from autowasm.sandbox.engine import (
    Engine,
    compile_module,
    deserialize,
    load_file,
    make_engine,
)
from autowasm.sandbox.errors import CannotCompile, CannotLoad
from autowasm.sandbox.plugin import Plugin, SandboxLimits
from autowasm.sandbox.verdict import judge
from autowasm.text import shown

_STORAGE: Final = {
    errno.EFBIG: NoVerdictReason.TOO_LARGE,  # RLIMIT_FSIZE; Python ignores the signal
    errno.ENOSPC: NoVerdictReason.STORAGE_UNAVAILABLE,
    errno.EDQUOT: NoVerdictReason.STORAGE_UNAVAILABLE,
    errno.EIO: NoVerdictReason.STORAGE_UNAVAILABLE,
}
_WARM_UP: Final = """
(module
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "a\\n\\ff")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) i32.const 1024)
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (drop (call $log (i32.const 2) (i32.const 16) (i32.const 3)))
    i32.const 1)
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) unreachable))
"""
"""A filter that uses most of the sandbox, because an isolated child can import nothing, not even a codec."""


def prepare() -> Mapping[str, Work]:
    """Import and run everything that the children need, in the fork server."""
    engine = make_engine(is_confined=True)
    compiled = compile_module(engine, bytes(wasmtime.wat2wasm(_WARM_UP)))
    verdict = judge(deserialize(engine, compiled.serialize()), Plugin(configuration=b"{}"))
    request = Request(Plugin(), SandboxLimits(), OLDEST_ENVOY)
    Request.from_json(request.to_json())
    Answer.from_json(Answer(None, verdict=verdict).to_json())
    shown("\n")
    return {
        COMPILE: functools.partial(_answer, functools.partial(_compile, engine)),
        RUN: functools.partial(_answer, functools.partial(_run, engine)),
    }


def _answer(
    work: Callable[[int, Sequence[int], Rlimits], Answer],
    channel: int,
    descriptors: Sequence[int],
    limits: Rlimits,
) -> None:
    answer = _outcome(work, channel, descriptors, limits)
    messages.write_all(channel, messages.frame(answer.to_json()))


def _outcome(
    work: Callable[[int, Sequence[int], Rlimits], Answer],
    channel: int,
    descriptors: Sequence[int],
    limits: Rlimits,
) -> Answer:
    try:
        return work(channel, descriptors, limits)
    except NotIsolated as error:
        problem = Problem(NoVerdictReason.ISOLATION_UNAVAILABLE, str(error))
    except CannotCompile as error:
        problem = Problem(NoVerdictReason.CANNOT_COMPILE, str(error))
    except CannotLoad as error:
        problem = Problem(NoVerdictReason.CANNOT_LOAD, str(error))
    except MemoryError:
        problem = Problem(NoVerdictReason.OUT_OF_MEMORY, "the child has no memory left")
    except OSError as error:
        problem = Problem(_STORAGE.get(error.errno or 0, NoVerdictReason.CRASHED), str(error))
    except Exception as error:  # supervised edge: a bug is not a verdict
        traceback.print_exc(limit=-4, file=sys.stderr)
        problem = Problem(NoVerdictReason.CRASHED, repr(error)[:500])
    return Answer(None, problem=problem)


def _compile(engine: Engine, _channel: int, descriptors: Sequence[int], limits: Rlimits) -> Answer:
    module, target = descriptors
    enforced = isolation.isolate(limits)
    code = compile_module(engine, _content(module)).serialize()
    messages.write_all(target, code)
    return Answer(enforced, compiled=len(code))


def _run(engine: Engine, channel: int, descriptors: Sequence[int], limits: Rlimits) -> Answer:
    (code,) = descriptors
    enforced = isolation.isolate(limits, readable=code)
    # By name, so that wasmtime maps the file. From bytes, it would make a file in memory, which no rlimit would bound.
    compiled = load_file(engine, f"/proc/self/fd/{code}")
    isolation.seal()
    request = Request.from_json(messages.read_frame(channel, most=PreflightLimits().request_bytes))
    verdict = judge(
        compiled,
        request.plugin,
        limits=request.limits,
        envoy=request.envoy,
        extra_imports=request.extra_imports,
        started_at=time.time_ns(),
    )
    return Answer(enforced, verdict=verdict)


def _content(fd: int) -> bytes:
    size = os.lseek(fd, 0, os.SEEK_END)
    parts = []
    offset = 0
    while offset < size and (part := os.pread(fd, size - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)  # a single part is not copied


if __name__ == "__main__":
    from autowasm.preflight import forkserver

    forkserver.run(prepare())
