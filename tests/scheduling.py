"""Which test file runs next, on which worker: the longest first, and files that share a control plane on the same workers.

A pytest plugin. `tests/durations.json` holds what `make durations` recorded of each file that takes a second or more: its length, and
whether it uses the control plane that files on one worker share. Invariant: the plugin decides on order and worker only. Every file runs
once, whole, on one worker, and the tests in a file keep the order that pytest-randomly gave them.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

RECORD = Path(__file__).with_name("durations.json")
"""What `make durations` writes."""
_LONG = 3.0
"""Seconds from which a file is placed by its length. Shorter ones keep the shuffled order and fill the gaps."""
_WORKERS_PER_CONTROL_PLANE = 2
"""One of so many workers takes the files that use a control plane, while other files are left."""


_CONTROL_PLANE_FIXTURES = frozenset({"control_plane"})
_PROPERTY = "control_plane"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is known of a file."""

    seconds: float = 0.5
    control_plane: bool = False


def recorded(file: Path = RECORD) -> dict[str, Recorded]:
    """The record: path of the test file below the root → what is known. Empty where there is none."""
    if not file.is_file():
        return {}
    return {path: Recorded(**found) for path, found in json.loads(file.read_text()).items()}


@dataclass(slots=True)
class Plan:
    """The choice among the files that wait."""

    known: Mapping[str, Recorded]
    ready: Callable[[str], bool] = lambda _: True
    """Whether the parts of a file are there already; a file whose parts are still being built comes last."""

    def choose(self, waiting: Sequence[str], *, worker: int, busy: float) -> str:
        """The file of `waiting` for this worker, which still has `busy` seconds of work before it."""
        ready = [file for file in waiting if self.ready(file)] or list(waiting)
        mine = [file for file in ready if self._takes(worker, file)] or ready
        short = [file for file in mine if self.seconds(file) < _LONG]
        # pytest-xdist hands out a file before the last test of the former one: a long file would wait behind a long test.
        if short and busy >= _LONG:
            return short[0]
        return max(mine, key=lambda file: max(self.seconds(file), _LONG))

    def _takes(self, worker: int, file: str) -> bool:
        owner = worker % _WORKERS_PER_CONTROL_PLANE == 0
        return owner if self.known.get(file, Recorded()).control_plane else True

    def seconds(self, file: str) -> float:
        """The length of a file, as recorded or as a guess."""
        return self.known.get(file, Recorded()).seconds


class LongestFirst(LoadFileScheduling):
    """pytest-xdist's scheduler of whole files, with another choice of the next one."""

    def __init__(self, config: pytest.Config, log: Producer | None, plan: Plan) -> None:
        super().__init__(config, log)
        self._plan = plan
        config.option.loadscopereorder = False

    def _assign_work_unit(self, node: WorkerController) -> None:
        busy = sum(
            self._plan.seconds(file) * list(tests.values()).count(False) / len(tests)
            for file, tests in self.assigned_work.get(node, {}).items()
        )
        number = int(node.gateway.id.removeprefix("gw"))
        chosen = self._plan.choose(list(self.workqueue), worker=number, busy=busy)
        self.workqueue.move_to_end(chosen, last=False)
        super()._assign_work_unit(node)


class Recorder:
    """Adds up what the files take, and writes it at the end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seconds: Counter[str] = Counter()
        self._control_plane: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of each phase of each test, in whatever process it ran."""
        file = report.nodeid.partition("::")[0]
        self._seconds[file] += report.duration
        if (_PROPERTY, True) in map(tuple, report.user_properties):
            self._control_plane.add(file)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Files that did not run keep what was recorded; files that are gone lose it."""
        known = recorded(self._file) | {
            file: Recorded(round(seconds), file in self._control_plane)
            for file, seconds in self._seconds.items()
        }
        rows = {
            file: {"seconds": found.seconds, "control_plane": found.control_plane}
            for file, found in sorted(known.items())
            if found.seconds >= 1 and (session.config.rootpath / file).is_file()
        }
        text = ",\n".join(f"  {json.dumps(file)}: {json.dumps(row)}" for file, row in rows.items())
        self._file.write_text(f"{{\n{text}\n}}\n")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of `make durations`."""
    parser.addoption(
        "--record-durations", action="store_true", help=f"write {RECORD.name} from this run"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Only the process that gets all reports records."""
    if config.option.record_durations and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(RECORD), "durations")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LongestFirst | None:
    """With `--dist loadfile`; None leaves every other way to pytest-xdist."""
    if config.option.dist != "loadfile":
        return None
    return LongestFirst(config, log, Plan(recorded()))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """In the worker: what the record has to know of the test."""
    if _CONTROL_PLANE_FIXTURES & set(getattr(item, "fixturenames", ())):
        item.user_properties.append((_PROPERTY, True))
