"""A namespace in memory, for what the sweep does with its objects: no rules of the API server, no other writers."""

from __future__ import annotations

import copy
import uuid
from datetime import UTC, datetime

from korrigo_operator.cluster import Cluster, Document
from korrigo_operator.kinds import API_VERSION


class KeptObjects(Cluster):
    """Keeps objects by plural and name, and the reasons of Events."""

    def __init__(self, now: datetime) -> None:
        self.namespace = "korrigo"
        self.now = now
        self.objects: dict[str, dict[str, Document]] = {}
        self.told: list[str] = []
        # The most objects that a kind ever had.
        self.most: dict[str, int] = {}

    def list(self, plural: str) -> list[Document]:
        return [copy.deepcopy(item) for item in self.objects.get(plural, {}).values()]

    def get(self, plural: str, name: str) -> Document | None:
        return copy.deepcopy(self.objects.get(plural, {}).get(name))

    def create(self, plural: str, kind: str, metadata: Document, spec: Document) -> Document | None:
        kept = self.objects.setdefault(plural, {})
        if metadata["name"] in kept:
            return None
        created = self.now.astimezone(UTC).isoformat().replace("+00:00", "Z")
        whole = {"uid": str(uuid.uuid4()), "resourceVersion": "1", "creationTimestamp": created, **metadata}
        kept[metadata["name"]] = {"apiVersion": API_VERSION, "kind": kind, "metadata": whole, "spec": spec}
        self.most[plural] = max(self.most.get(plural, 0), len(kept))
        return self.get(plural, metadata["name"])

    def patch(self, plural: str, name: str, change: Document, *, part: str = "") -> Document | None:
        found = self.objects.get(plural, {}).get(name)
        if found is None:
            return None
        _merge(found, copy.deepcopy(change))
        return copy.deepcopy(found)

    def delete(self, plural: str, name: str, uid: str) -> None:
        self.objects.get(plural, {}).pop(name, None)

    def tell(self, about: Document, reason: str, message: str, *, is_warning: bool = False) -> None:
        self.told.append(reason)


def _merge(into: Document, change: Document) -> None:
    for key, value in change.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
