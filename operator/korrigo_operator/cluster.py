"""The API server, as far as the operator needs it: objects of one namespace, Events, one Lease.

One call, one try: what fails is tried by the next sweep. The token is read again for every call (the kubelet replaces
it hourly), and the connection carries a deadline, so that a silent API server costs a sweep and never the process.
"""

from __future__ import annotations

import base64
import os
import ssl
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from korrigo_kit.addresses import in_url
from korrigo_kit.clock import rfc3339, utc_now
from korrigo_kit.errors import AlreadyExists, Forbidden, Invalid, KorrigoError, NotFound, StateConflict, Unavailable
from korrigo_kit.settings import SettingsError
from korrigo_operator.kinds import API_VERSION

Document = dict[str, Any]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
COMPONENT = "korrigo-operator"
_SECONDS = 10.0
_PAGE = 250
_PATCH = {"Content-Type": "application/merge-patch+json"}
_BY_STATUS: dict[int, type[KorrigoError]] = {403: Forbidden, 404: NotFound, 409: StateConflict, 422: Invalid}


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how it lets us in; `token` a file, or `certificate` a file of certificate and key."""

    url: str
    namespace: str
    authority: str | None = None
    token: Path | None = None
    certificate: Path | None = None


def find_access(namespace: str = "") -> Access:
    """Return the access of the pod's service account, else that of the kubeconfig; raises SettingsError."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host and not os.environ.get("KUBECONFIG"):
        named = namespace or (SERVICE_ACCOUNT / "namespace").read_text().strip()
        authority = (SERVICE_ACCOUNT / "ca.crt").read_text()
        return Access(f"https://{in_url(host)}:{port}", named, authority, token=SERVICE_ACCOUNT / "token")
    path = Path(os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)[0]).expanduser()
    if not path.exists():
        raise SettingsError("there is neither a service account nor a KUBECONFIG")
    return _from_kubeconfig(yaml.safe_load(path.read_text()), namespace)


def _from_kubeconfig(document: Document, namespace: str) -> Access:
    context = _named(document, "contexts", document["current-context"])["context"]
    cluster = _named(document, "clusters", context["cluster"])["cluster"]
    user = _named(document, "users", context["user"])["user"]
    authority = _content(cluster, "certificate-authority")
    certificate = token = None
    if "client-certificate-data" in user or "client-certificate" in user:
        certificate = _private_file(f"{_content(user, 'client-certificate')}\n{_content(user, 'client-key')}")
    elif "token" in user:
        token = _private_file(user["token"])
    elif "tokenFile" in user:
        token = Path(user["tokenFile"])
    else:
        raise SettingsError("the kubeconfig's user has neither a certificate nor a token")
    named = namespace or context.get("namespace", "default")
    return Access(cluster["server"], named, authority, token, certificate)


def _named(document: Document, key: str, name: str) -> Document:
    found = next((entry for entry in document.get(key, ()) if entry["name"] == name), None)
    if found is None:
        raise SettingsError(f"the kubeconfig has no {name} among its {key}")
    return dict(found)


def _content(part: Document, key: str) -> str | None:
    if f"{key}-data" in part:
        return base64.b64decode(part[f"{key}-data"]).decode()
    return Path(part[key]).read_text() if key in part else None


def _private_file(text: str) -> Path:
    """Keep what Python's ssl reads from files only, in memory: nothing is left when the process is killed."""
    descriptor = os.memfd_create("korrigo-operator")
    with os.fdopen(descriptor, "w", closefd=False) as file:
        file.write(text)
    return Path(f"/proc/self/fd/{descriptor}")


class Cluster:
    """One namespace of a cluster. Raises Unavailable (API_SERVER_UNAVAILABLE) and the classes of `_BY_STATUS`."""

    def __init__(self, access: Access) -> None:
        context = ssl.create_default_context(cadata=access.authority)
        if access.certificate is not None:
            context.load_cert_chain(access.certificate)
        self.namespace = access.namespace
        self._token = access.token
        self._client = httpx.Client(
            base_url=access.url, verify=context, timeout=_SECONDS, headers={"User-Agent": COMPONENT}, trust_env=False
        )

    def list(self, plural: str) -> list[Document]:
        """List every object of a kind of ours."""
        found: list[Document] = []
        more = ""
        while True:
            answer = self._send("GET", self._path(plural), params={"limit": _PAGE, "continue": more})
            found += answer["items"]
            more = answer["metadata"].get("continue", "")
            if not more:
                return found

    def get(self, plural: str, name: str) -> Document | None:
        """Read one object of ours, None when it is not there."""
        try:
            return self._send("GET", self._path(plural, name))
        except NotFound:
            return None

    def create(self, plural: str, kind: str, metadata: Document, spec: Document) -> Document | None:
        """Make an object of ours; None when one of that name is there."""
        body = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
        try:
            return self._send("POST", self._path(plural), json=body)
        except AlreadyExists:
            return None

    def patch(self, plural: str, name: str, change: Document, *, part: str = "") -> Document | None:
        """Merge a change into an object of ours; None when it is gone. A resourceVersion in it must be right."""
        try:
            return self._send("PATCH", self._path(plural, name, part), json=change, headers=_PATCH)
        except NotFound:
            return None

    def delete(self, plural: str, name: str, uid: str) -> None:
        """Delete exactly this object; one that is gone, or that is another by now, is left alone."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}}
        try:
            self._send("DELETE", self._path(plural, name), json=body)
        except (NotFound, StateConflict):
            return

    def tell(self, about: Document, reason: str, message: str, *, is_warning: bool = False) -> None:
        """Write an Event about an object; one that cannot be written is no reason to stop."""
        metadata, now = about["metadata"], rfc3339(utc_now())
        body = {
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": f"{metadata['name'][:200]}.{uuid.uuid4().hex[:16]}", "namespace": self.namespace},
            "involvedObject": {
                "apiVersion": about["apiVersion"], "kind": about["kind"], "name": metadata["name"],
                "namespace": self.namespace, "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
            },
            "type": "Warning" if is_warning else "Normal", "reason": reason, "message": message[:1000],
            "source": {"component": COMPONENT}, "reportingComponent": COMPONENT, "reportingInstance": COMPONENT,
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        }  # fmt: skip
        try:
            self._send("POST", f"/api/v1/namespaces/{self.namespace}/events", json=body)
        except KorrigoError:
            return

    def lease(self, method: str, name: str, body: Document | None = None) -> Document:
        """GET, POST or PUT a Lease."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"
        return self._send(method, path if method == "POST" else f"{path}/{name}", json=body)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _path(self, plural: str, name: str = "", part: str = "") -> str:
        path = f"/apis/{API_VERSION}/namespaces/{self.namespace}/{plural}"
        return "/".join(piece for piece in (path, name, part) if piece)

    def _send(self, method: str, path: str, **given: Any) -> Document:
        headers = dict(given.pop("headers", {}))
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.read_text().strip()}"
        try:
            answer = self._client.request(method, path, headers=headers, **given)
        except httpx.HTTPError as error:
            what = f"the API server did not answer ({type(error).__name__})"
            raise Unavailable("API_SERVER_UNAVAILABLE", what) from error
        if answer.is_success:
            document: Document = answer.json()
            return document
        raise _error(answer)


def _error(answer: httpx.Response) -> KorrigoError:
    try:
        told = answer.json()
    except ValueError:
        told = {}
    message = str(told.get("message", ""))[:500]
    if answer.status_code == 409 and told.get("reason") == "AlreadyExists":
        return AlreadyExists("OBJECT_EXISTS", message)
    cls = _BY_STATUS.get(answer.status_code, Unavailable)
    reason = "API_SERVER_UNAVAILABLE" if cls is Unavailable else f"API_{answer.status_code}"
    return cls(reason, message or f"the API server answered {answer.status_code}")
