"""FakeSecrets: a SecretReader of Secrets that a test sets."""

from collections import Counter
from dataclasses import dataclass, field

from autowasm.artifacts.pullsecrets import PullSecret


@dataclass
class FakeSecrets:
    """Secrets by namespace and name."""

    secrets: dict[tuple[str, str], PullSecret] = field(default_factory=dict)
    reads: Counter[tuple[str, str]] = field(default_factory=Counter)

    def login(self, namespace: str, name: str, username: str, *, host: str, uid: str = "") -> None:
        """A pull secret for one registry; the password is the user's name twice."""
        config = f'{{"auths":{{"{host}":{{"username":"{username}","password":"{username * 2}"}}}}}}'
        self.secrets[namespace, name] = PullSecret(
            "kubernetes.io/dockerconfigjson", {".dockerconfigjson": config.encode()}, uid=uid
        )

    def give(self, username: str, *, namespace: str = "default", uid: str) -> None:
        """The namespace's Secret `pull` for registry.example."""
        self.login(namespace, "pull", username, host="registry.example", uid=uid)

    async def read(self, namespace: str, name: str) -> PullSecret | None:
        self.reads[namespace, name] += 1
        return self.secrets.get((namespace, name))
