"""The sources of the filters, and how the answer of `echo` is read. Nothing is compiled here."""

import json

import pytest

from tests.parts import filters, toolchains


def test_each_filter_that_the_page_names_is_there_in_c() -> None:
    page = (toolchains.ASSETS / "README.md").read_text()
    named = {
        line.split("`")[1] for line in page.partition("| filter |")[2].partition("\n\n")[0].splitlines()
        if line.startswith("| `")
    }  # fmt: skip
    assert named == set(filters.TOOLCHAINS["c"].filters())


def test_a_change_of_a_shared_source_changes_the_key_of_each_filter_of_the_toolchain(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("filters")
    for name, text in (("one/filter.c", "1"), ("two/filter.c", "2"), ("proxywasm/p.h", "p")):
        path = folder / "c" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(toolchains, "ASSETS", folder)
    built: list[str] = []
    monkeypatch.setattr(
        toolchains.cache, "install_once", lambda entry, **_: built.append(entry) or folder
    )

    def entries() -> list[str]:
        built.clear()
        for name in ("one", "two"):
            toolchains.C_WITH_ZIG.build(name)
        return list(built)

    first = entries()
    (folder / "c/one/filter.c").write_text("changed")
    second = entries()
    (folder / "c/proxywasm/p.h").write_text("changed")
    third = entries()

    assert first == [first[0], second[1]]
    assert first[0] != second[0] != third[0]
    assert second[1] != third[1]


def test_answer_of_echo_is_read_byte_for_byte() -> None:
    lines = {
        "configuration": b"\x00\xff",
        "vm-configuration": b"",
        "plugin_name": b"name",
        "plugin_root_id": "hällo".encode(),
        "plugin_vm_id": b"vm",
        "environment": b"A=b=c",
    }
    body = "".join(f"{name} {value.hex()}\n" for name, value in lines.items()).encode()

    echo = filters.Echo.parse(body)

    assert (echo.configuration, echo.root_id) == (b"\x00\xff", "hällo")
    assert dict(echo.environment) == {"A": "b=c"}


@pytest.mark.parametrize("body", [b"", b"configuration 00\n", b"configuration zz\n"])
def test_body_that_echo_did_not_write_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"lacks|hexadecimal"):
        filters.Echo.parse(body)


def test_lock_of_the_packages_from_npm_pins_each_by_hash_and_names_no_registry() -> None:
    folder = toolchains.ASSEMBLYSCRIPT.folder
    lock = json.loads((folder / "package-lock.json").read_text())
    packages = [package for name, package in lock["packages"].items() if name]

    assert packages
    assert all(package["integrity"].startswith("sha512-") for package in packages)
    assert not any("resolved" in package for package in packages)
