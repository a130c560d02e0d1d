"""Settings of the operator; what shapes its decisions is the GradingPolicy in the cluster, not here."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from korrigo_kit.addresses import in_url
from korrigo_kit.settings import Section


class OperatorSettings(Section):
    section: ClassVar[str] = "operator"
    namespace: str = Field("", description="Namespace to look after; default: that of the pod's service account.")
    identity: str = Field("", description="Name under which it holds the lease; default: the host's name.")
    health_host: str = Field("0.0.0.0", description="Address of /healthz.")  # noqa: S104 - kubelet asks the pod's address
    health_port: int = Field(8081, ge=0, le=65535, description="Port of /healthz; 0 = none.")
    runbooks_url: str = Field(
        "https://korrigo.example.org/runbooks/", description="Where the runbooks are; the page's name is appended."
    )
    lease_seconds: float = Field(30, gt=1, description="Time after which another may act for one that is silent.")

    @property
    def liveness(self) -> str | None:
        """Where kopf serves /healthz, None = nowhere."""
        return f"http://{in_url(self.health_host)}:{self.health_port}/healthz" if self.health_port else None


SECTIONS: tuple[type[Section], ...] = (OperatorSettings,)

# Sections of the rooms and of the front door, which the operator may not import (a test holds the names together). A
# chart gives one environment to every process: what is misspelt in these, the processes that read them refuse.
ELSEWHERE = frozenset(
    {"alerting", "backup", "healing", "import", "lock", "login", "monitoring", "postgres", "render", "upload"}
)
