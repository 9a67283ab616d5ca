"""A file as readers see it during a write, and after the writer was killed."""

import subprocess
import sys
import threading
from pathlib import Path

from autowasm.standalone import publisher

ONE, TWO = b"one\n" * 200_000, b"two\n" * 200_000
WRITER = """
import sys
from pathlib import Path
from autowasm.standalone import publisher
print("ready", flush=True)
while True:
    for word in (b"one\\n", b"two\\n"):
        publisher.write_if_changed(Path(sys.argv[1]), word * 200_000)
"""


def test_reader_sees_the_old_bytes_or_the_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    publisher.write_if_changed(path, ONE)
    done = threading.Event()
    partial: list[int] = []

    def read() -> None:
        while not done.is_set():
            content = path.read_bytes()
            if content not in {ONE, TWO}:
                partial.append(len(content))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(40):
            assert publisher.write_if_changed(path, ONE if number % 2 else TWO)
    finally:
        done.set()
        reader.join()
    assert partial == []


def test_killed_writer_leaves_a_whole_file_and_ignored_partial_files(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    publisher.write_if_changed(path, ONE)
    for pause in (0.0, 0.01, 0.03, 0.05, 0.1):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            try:
                writer.wait(pause)
            except subprocess.TimeoutExpired:
                writer.kill()
        assert path.read_bytes() in {ONE, TWO}
        assert {each.name for each in tmp_path.glob("*.yaml")} == {"a.yaml"}
        assert all(each == path or each.name.startswith(".a.yaml.") for each in tmp_path.iterdir())
