"""The API server as a judge of AutoWasms, for tests that are not on a loop (hypothesis).

Not a client of Kubernetes. Invariant: nothing is ever stored (`dryRun=All`), so one question does not change the next.
"""

import http.client
import json
from typing import Self
from urllib.parse import urlsplit

from tests.manifests.documents import AUTOWASMS, Document
from tests.parts.kubernetes import ADMIN, Cluster

STRICT = "?dryRun=All&fieldValidation=Strict"
"""A dry run as kubectl requests it: nothing is stored, and an unknown field is an error instead of a warning."""


class Judge:
    """One kept connection to the API server of `cluster`."""

    def __init__(self, cluster: Cluster) -> None:
        address = urlsplit(cluster.url)
        self._connection = http.client.HTTPSConnection(
            address.hostname or "", address.port, timeout=30, context=cluster.context
        )
        self._headers = {
            "authorization": f"Bearer {cluster.tokens[ADMIN]}",
            "content-type": "application/json",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def refusal(self, document: Document) -> str | None:
        """Why the schema refuses it; None if it does not."""
        path = AUTOWASMS.format(namespace=document["metadata"]["namespace"]) + STRICT
        body = json.dumps(document).encode()
        self._connection.request("POST", path, body=body, headers=self._headers)
        answer = self._connection.getresponse()
        said = json.loads(answer.read())
        if answer.status == 201:
            return None
        assert answer.status in {400, 422}, said
        return str(said["message"])
