"""Challenges of registries: any header is read or passed over, in bounded time."""

from hypothesis import given
from hypothesis import strategies as st

from autowasm.registry.auth import parse_challenges

pieces = st.lists(
    st.one_of(
        st.sampled_from(["Bearer ", "Basic ", 'realm="', '"', ",", "=", "\\", " ", "\n", "{{ }}"]),
        st.text(max_size=8),
    ),
    max_size=40,
).map("".join)


@given(pieces)
def test_any_challenge_header_is_read(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge is not None
