"""`wasmc test`: runs suites of cases, and prints the differences between expected and actual results.

With `--engine envoy`, each case also runs in a real Envoy, which must behave like the sandbox.

Invariants: an invalid suite is reported before any case runs; a failed case never prevents another from running; a filter's log
is printed only with printable characters.
"""

import argparse
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from autowasm.cli import engineoption, modules, registries
from autowasm.cli.stdio import fitted, is_coloured, is_piped, standard_input, width_of
from autowasm.envoyversion import EnvoyVersion
from autowasm.errors import AutoWasmError, ContentRejected, UsageError
from autowasm.limits import Limits
from autowasm.sandbox.engine import Compiled, compile_module, make_engine
from autowasm.text import shown
from autowasm.trial import junit, selection, testing
from autowasm.trial.matching import Mismatch
from autowasm.trial.strictfile import MAX_BYTES
from autowasm.trial.testing import CaseResult, PreparedCase, PreparedSuite
from autowasm.wasm.module import inspect_bytes

_SHOWN_LOG: Final = 10
"""Lines of the filter's log below a failed case. The JUnit file has all lines that the sandbox keeps."""
_COLOURS: Final = {"ok": "32", "FAIL": "31", "-": "31", "+": "32"}


def run(arguments: argparse.Namespace) -> int:
    """Print the results, return the exit status. Raises AutoWasmError and OSError."""
    registries.begin(arguments)
    try:
        selects = selection.parse(arguments.expression or "")
    except ValueError as error:
        raise UsageError(f"-k: {error}") from error
    program = engineoption.find(arguments.engine)
    envoy = engineoption.identify(program) if program is not None else None
    if envoy is not None:
        arguments.envoy_version = envoy.release
    suites = [_prepared(path, arguments) for path in arguments.suites]
    chosen = [(suite, [case for case in suite.cases if selects(case.name)]) for suite in suites]
    total = sum(len(suite.cases) for suite in suites)
    selected = sum(len(cases) for _, cases in chosen)
    if not selected:
        raise UsageError(f"-k {arguments.expression}: none of the {total} cases has such a name")
    report = _Report(colour=is_coloured(sys.stdout), quiet=arguments.quiet)
    began = time.perf_counter()
    results = [(suite, _run(suite, cases, report, envoy)) for suite, cases in chosen if cases]
    every = [result for _, some in results for result in some]
    report.summary(every, left_out=total - selected, seconds=time.perf_counter() - began)
    if arguments.junit is not None:
        document = junit.document([(suite.name, some) for suite, some in results])
        arguments.junit.write_bytes(document)  # may be a pipe
    return 0 if all(result.passed for result in every) else 1


def _prepared(path: Path, arguments: argparse.Namespace) -> PreparedSuite:
    flag = str(path)
    if is_piped(path):
        content = standard_input(flag).read(MAX_BYTES + 1) if flag == "-" else path.read_bytes()
    else:
        try:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise UsageError(f"{flag}: {error.strerror}") from error
    return testing.prepare(
        path,
        content,
        module=arguments.module,
        envoy=arguments.envoy_version,
        allow_imports=frozenset(arguments.allow_import),
    )


def _run(
    suite: PreparedSuite,
    cases: Sequence[PreparedCase],
    report: "_Report",
    envoy: engineoption.Engine | None,
) -> list[CaseResult]:
    loader = _Loader(suite.envoy, suite.allow_imports)
    report.begin(suite.name)
    results = []
    for case in cases:
        result = testing.run_case(case, suite, loader)
        if envoy is not None:
            module = loader.content(case.module)
            result = registries.run_to_end(
                testing.compared_with_envoy(result, module, envoy.program, envoy.version)
            )
        report.add(suite, result)
        results.append(result)
    return results


class _Loader:
    """The compiled modules by file, each checked as wasmer would check it."""

    def __init__(self, envoy: EnvoyVersion, allow_imports: frozenset[str]) -> None:
        self._envoy = envoy
        self._allow_imports = allow_imports
        self._engine = make_engine()
        self._loaded: dict[Path, tuple[bytes, Compiled]] = {}

    def __call__(self, path: Path) -> Compiled:
        """Raises UsageError for a file that cannot be read, AutoWasmError for a module that cannot be run."""
        if path not in self._loaded:
            self._loaded[path] = self._load(path)
        return self._loaded[path][1]

    def content(self, path: Path) -> bytes:
        """The bytes of a module that was loaded."""
        return self._loaded[path][0]

    def _load(self, path: Path) -> tuple[bytes, Compiled]:
        file = modules.file_of(
            f"./{path}" if not path.is_absolute() else str(path), command="module"
        )
        if file is None:
            raise UsageError(f"module {path}: no such file")
        try:
            modules.check_size(file.stat().st_size, limits=Limits())
            data = file.read_bytes()
            inspect_bytes(
                data, limits=Limits(), allow_imports=self._allow_imports, envoy=self._envoy
            )
            return data, compile_module(self._engine, data)
        except ContentRejected as error:
            raise ContentRejected(f"module {path}: {error}", reason=error.reason) from error
        except AutoWasmError as error:
            raise AutoWasmError(f"module {path}: {error}", reason=error.reason) from error


class _Report:
    """Prints results as they arrive."""

    def __init__(self, *, colour: bool, quiet: bool) -> None:
        self._colour = colour
        self._quiet = quiet
        self._width = fitted(width_of(sys.stdout), least=40, most=120)

    def begin(self, name: str) -> None:
        """A suite begins."""
        if not self._quiet:
            print(shown(name, most=300), flush=True)

    def add(self, suite: PreparedSuite, result: CaseResult) -> None:
        """A case has ended."""
        if result.passed:
            if not self._quiet:
                note = f" (sandbox only: {result.sandbox_only})" if result.sandbox_only else ""
                self._line("ok", f"{result.case.name}{note}")
            return
        self._line("FAIL", f"{result.case.name} ({suite.name}:{result.case.line})")
        for mismatch in result.mismatches:
            line = suite.lines.at(f"{result.case.field}.{mismatch.path}")
            self._mismatch(mismatch, line)
        if result.log:
            print("        log of the filter:")
            for each in result.log[-_SHOWN_LOG:]:
                text = f"{each.level.name.lower()}: {shown(each.message, most=500)}"
                self._wrapped(text, indent=10)
        sys.stdout.flush()

    def _line(self, word: str, text: str) -> None:
        painted = self._painted(word, word)
        self._wrapped(shown(text, most=500), head=f"  {painted}{' ' * (6 - len(word))}", indent=8)

    def _mismatch(self, mismatch: Mismatch, line: int) -> None:
        self._wrapped(f"{shown(mismatch.path, most=300)} (line {line})", indent=8)
        for each in mismatch.lines:
            self._wrapped(each, indent=10, colour=each[:1] if each[:2] in {"- ", "+ "} else "")

    def _wrapped(self, text: str, *, indent: int, head: str = "", colour: str = "") -> None:
        lines = textwrap.wrap(
            text, self._width - indent, subsequent_indent="  ", break_on_hyphens=False
        ) or [""]
        for number, line in enumerate(lines):
            start = head if head and number == 0 else " " * indent
            print(f"{start}{self._painted(line, colour)}".rstrip())

    def _painted(self, text: str, kind: str) -> str:
        code = _COLOURS.get(kind) if self._colour else None
        return f"\x1b[{code}m{text}\x1b[0m" if code else text

    def summary(self, results: Sequence[CaseResult], *, left_out: int, seconds: float) -> None:
        """The last line."""
        failed = sum(not result.passed for result in results)
        parts = [f"{len(results) - failed} passed"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{left_out} not selected"] if left_out else []
        alone = sum(bool(result.sandbox_only) for result in results)
        parts += [f"{alone} in the sandbox only"] if alone else []
        print(f"{', '.join(parts)} in {seconds:.2f} s", flush=True)
