import pytest

from autowasm.envoyversion import OLDEST_ENVOY, envoy_version


@pytest.mark.parametrize("text", ["1.39", "1.39.0", "v1.39", "v1.39.12"])
def test_a_release_is_read_with_or_without_its_patch(text: str) -> None:
    assert envoy_version(text) == (1, 39)
    assert str(envoy_version(text)) == "1.39"


def test_versions_compare_as_numbers() -> None:
    assert OLDEST_ENVOY < envoy_version("1.39") < envoy_version("1.100") < envoy_version("2.0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "such as 1.39"),
        ("1", "such as 1.39"),
        ("1.39-dev", "such as 1.39"),
        ("1.3999999", "such as 1.39"),
        ("1.4", "1.36 is the oldest"),
        ("1.35", "1.36 is the oldest"),
    ],
)
def test_other_text_and_older_releases_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        envoy_version(text)
