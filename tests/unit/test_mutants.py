"""The lists of `make mutants` name what there is, so a file that moves is noticed before the next run of mutants."""

from tests.mutants import accepted, modules


def test_every_module_and_test_file_in_the_list_exists() -> None:
    assert modules.read(modules.FILE.read_text())


def test_every_accepted_survivor_is_of_a_module_in_the_list_and_of_code_that_is_there() -> None:
    known = modules.read(modules.FILE.read_text())
    for entry in accepted.read(accepted.FILE.read_text()):
        assert entry.module in known
        source = (modules.ROOT / entry.module).read_text()
        assert all(line in source for line in entry.before.splitlines()), entry.before
