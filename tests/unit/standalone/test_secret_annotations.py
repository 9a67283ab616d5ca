"""Secret documents keep the annotations that state their purpose."""

from autowasm.limits import Limits
from autowasm.standalone import documents

TEXT = """
apiVersion: v1
kind: Secret
type: kubernetes.io/basic-auth
metadata: {name: login, annotations: {wasm.tcm.io/registry: r.example, number: 1}}
stringData: {username: alice, password: s3cret}
"""


def test_annotations_are_read_and_odd_ones_left_out() -> None:
    parsed = documents.parse(TEXT.encode(), limits=Limits())
    assert not parsed.problems
    [(_, secret)] = parsed.secrets
    assert secret.annotations == {"wasm.tcm.io/registry": "r.example"}
    assert "s3cret" not in repr(secret)


def test_metadata_without_annotations() -> None:
    text = TEXT.replace(", annotations: {wasm.tcm.io/registry: r.example, number: 1}", "")
    [(_, secret)] = documents.parse(text.encode(), limits=Limits()).secrets
    assert secret.annotations == {}
