"""Decides which test file runs next on which worker: the longest first, and files that share a control plane on the same workers.

A pytest plugin. `tests/durations.json` has the record of `make durations` for each file that takes a second or more or uses parts: its
length, whether it uses the control plane that files on one worker share, and the real parts it uses (`parts/provision.py`). Invariant: the
plugin decides on order and worker only. Every file runs once, whole, on one worker, and the tests in a file keep the order that
pytest-randomly gave them.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from tests import backgroundbuilds
from tests.backgroundbuilds import Missing, Progress, Provisioner, Uses, Waiting
from tests.maxload import MaxLoad, Turn

RECORD = Path("tests/durations.json")
"""The file of `make durations`, relative to the root."""
_LONG = 3.0
"""Seconds from which a file is scheduled by its length. Shorter ones keep the shuffled order and fill the gaps."""
_WORKERS_PER_CONTROL_PLANE = 2
"""One in this many workers takes the files that use a control plane, while other files are left."""


_CONTROL_PLANE_FIXTURES = frozenset({"control_plane"})
_PROPERTY = "control_plane"


@dataclass(frozen=True, slots=True)
class Recorded:
    """The recorded facts of a file."""

    seconds: float = 0.5
    control_plane: bool = False
    parts: tuple[str, ...] = ()
    """Names of `tests.parts.provision.PARTS`."""


def recorded(file: Path) -> dict[str, Recorded]:
    """The record: path of the test file below the root → facts. Empty if there is no record."""
    if not file.is_file():
        return {}
    return {
        path: Recorded(found["seconds"], found["control_plane"], tuple(found.get("parts", ())))
        for path, found in json.loads(file.read_text()).items()
    }


@dataclass(slots=True)
class Plan:
    """The choice among the files that wait."""

    known: Mapping[str, Recorded]
    wait: Callable[[str], int] = lambda _: 0
    """0 if all parts of a file are installed; otherwise higher the later the last of them will be built."""

    def choose(self, waiting: Sequence[str], *, worker: int, busy: float) -> str:
        """The file of `waiting` for this worker, which still has `busy` seconds of work left."""
        waits = {file: self.wait(file) for file in waiting}
        soonest = min(waits.values())
        ready = [file for file in waiting if waits[file] == soonest]
        mine = [file for file in ready if self._takes(worker, file)] or ready
        short = [file for file in mine if self.seconds(file) < _LONG]
        # pytest-xdist hands out a file before the last test of the previous one: a long file would wait behind a long test.
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
    """pytest-xdist's scheduler of whole files, with a different choice of the next file."""

    def __init__(
        self,
        config: pytest.Config,
        log: Producer | None,
        plan: Plan,
        get_parts: Callable[[set[str]], None],
    ) -> None:
        super().__init__(config, log)
        self._plan = plan
        self._get_parts = get_parts
        config.option.loadscopereorder = False

    def schedule(self) -> None:
        """Called when every worker has collected the tests, and for each worker that replaces another."""
        for collected in self.registered_collections.values():
            self._get_parts({_file(test) for test in collected})
            break
        super().schedule()

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
    """Adds up the times of the files, and writes them at the end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seconds: Counter[str] = Counter()
        self._control_plane: set[str] = set()
        self._parts: defaultdict[str, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for each phase of each test, in any process."""
        file = _file(report.nodeid)
        self._seconds[file] += report.duration
        for name, value in report.user_properties:
            if name == _PROPERTY:
                self._control_plane.add(file)
            elif name == backgroundbuilds.PROPERTY:
                self._parts[file].update(value)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Files that did not run keep their record; files that were removed lose it."""
        known = recorded(self._file) | {
            file: Recorded(
                round(seconds), file in self._control_plane, tuple(sorted(self._parts[file]))
            )
            for file, seconds in self._seconds.items()
        }
        rows = {
            file: {"seconds": found.seconds, "control_plane": found.control_plane}
            | ({"parts": found.parts} if found.parts else {})
            for file, found in sorted(known.items())
            if (found.seconds >= 1 or found.parts) and (session.config.rootpath / file).is_file()
        }
        text = ",\n".join(f"  {json.dumps(file)}: {json.dumps(row)}" for file, row in rows.items())
        self._file.write_text(f"{{\n{text}\n}}\n")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of `make durations`."""
    parser.addoption(
        "--record-durations", action="store_true", help=f"write {RECORD.name} from this run"
    )


_known = pytest.StashKey[dict[str, Recorded]]()
_provisioner = pytest.StashKey[Provisioner]()
_missing = pytest.StashKey[Missing]()


def pytest_configure(config: pytest.Config) -> None:
    """In the main process, which builds the parts and gets all reports; without workers it also runs the tests."""
    record = config.rootpath / RECORD
    known = config.stash[_known] = recorded(record)
    parts = {file: found.parts for file, found in known.items() if found.parts}
    if not hasattr(config, "workerinput"):
        missing = config.stash[_missing] = Missing(parts)
        provisioner = config.stash[_provisioner] = Provisioner(missing)
        config.add_cleanup(provisioner.end)
        if config.option.record_durations:
            config.pluginmanager.register(Recorder(record), "durations")
    if log := backgroundbuilds.log_of_the_run():
        config.add_cleanup(Progress(log).close)
    if hasattr(config, "workerinput"):
        seconds = {file: found.seconds for file, found in known.items()}
        config.pluginmanager.register(MaxLoad(seconds, Turn(record)), "max-load")
    uses, waiting = Uses(), Waiting(parts)
    config.pluginmanager.register(uses, "uses-of-parts")
    config.pluginmanager.register(waiting, "waiting-for-parts")
    config.add_cleanup(uses.close)
    config.add_cleanup(waiting.close)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Without workers. With them, the scheduler has the collected tests."""
    provisioner = session.config.stash.get(_provisioner, None)
    if provisioner and not session.config.option.collectonly:
        provisioner.start({_file(item.nodeid) for item in session.items})


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LongestFirst | None:
    """With `--dist loadfile`; None leaves every other mode to pytest-xdist."""
    if config.option.dist != "loadfile":
        return None
    plan = Plan(config.stash[_known], wait=config.stash[_missing].rank)
    return LongestFirst(config, log, plan, config.stash[_provisioner].start)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """In the worker: the facts of the test for the record."""
    if _CONTROL_PLANE_FIXTURES & set(getattr(item, "fixturenames", ())):
        item.user_properties.append((_PROPERTY, True))


def _file(test: str) -> str:
    return test.partition("::")[0]
