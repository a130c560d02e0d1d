"""What stands beside the product in the test cluster: PostgreSQL, RabbitMQ, an S3 server, Prometheus, Alertmanager.

Called by `cluster.installation`. They live in a namespace of their own; the product knows of them only what its three
secrets and values tell, as it would of a cloud's. Passwords are made at random for each cluster.
"""

from __future__ import annotations

import base64
import re
import secrets
from pathlib import Path

import yaml

from cluster.kube import Json, Kube
from harness.runbooks import GUIDES

NAMESPACE = "korrigo-services"
MANIFESTS = Path(__file__).resolve().parent / "manifests" / "services"
DATA_SERVICES = ("postgresql", "rabbitmq", "s3")
BUCKET = "korrigo-blobs"
S3_ENDPOINT = f"http://s3.{NAMESPACE}:7070"


def objects(path: Path) -> list[Json]:
    """Return the objects of a manifest."""
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def start(kube: Kube, namespace: str) -> None:
    """Start the data services, and write the product's secrets into its namespace; the two must exist.

    Called again it changes nothing. `wait` waits.
    """
    known = _credentials(kube)
    kube.apply(_product_secrets(known, namespace))
    for name in DATA_SERVICES:
        kube.apply(objects(MANIFESTS / f"{name}.yaml"))


def start_monitoring(kube: Kube) -> None:
    """Ask the Prometheus Operator for a Prometheus and an Alertmanager, and start the webhook's receiver."""
    kube.apply(objects(MANIFESTS / "monitoring.yaml"))


def wait(kube: Kube, *, seconds: int = 240) -> None:
    """Wait until the data services accept connections."""
    for name in DATA_SERVICES:
        words = ("-n", NAMESPACE, "rollout", "status", f"deployment/{name}", f"--timeout={seconds}s")
        kube.kubectl(*words, seconds=seconds + 20)


def wait_monitoring(kube: Kube, *, seconds: int = 240) -> None:
    """Wait until Alertmanager is ready."""
    words = ("-n", NAMESPACE, "wait", "alertmanager/services", "--for=condition=Available", f"--timeout={seconds}s")
    kube.kubectl(*words, seconds=seconds + 20)


def rights() -> list[str]:
    """Return what the deploy guide has a superuser say about the product's role, and nobody else gives it more."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (GUIDES / "cluster.md").read_text(), re.MULTILINE | re.DOTALL)
    (cluster,) = [found for found in map(yaml.safe_load, blocks) if found.get("kind") == "Cluster"]
    statements: list[str] = cluster["spec"]["bootstrap"]["initdb"]["postInitSQL"]
    return statements


def _credentials(kube: Kube) -> dict[str, str]:
    """Return the passwords of this cluster, made when there are none."""
    words = ("-n", NAMESPACE, "get", "secret", "credentials", "--ignore-not-found", "-o", "name")
    if not kube.kubectl(*words).strip():
        made = {
            "postgresql-password": secrets.token_hex(16),
            "rabbitmq-password": secrets.token_hex(16),
            "s3-access-key-id": secrets.token_hex(8),
            "s3-secret-access-key": secrets.token_hex(20),
            # no secret, but it is needed in the same place
            "rights.sql": "\n".join(rights()) + "\n",
        }
        kube.apply([_secret("credentials", NAMESPACE, made)])
    found = kube.get("-n", NAMESPACE, "secret", "credentials")["data"]
    return {name: base64.b64decode(value).decode() for name, value in found.items()}


def _product_secrets(known: dict[str, str], namespace: str) -> list[Json]:
    """The secrets under the names that the chart expects."""
    database = f"postgresql://korrigo:{known['postgresql-password']}@postgresql.{NAMESPACE}:5432/korrigo"
    broker = f"korrigo:{known['rabbitmq-password']}@rabbitmq.{NAMESPACE}"
    return [
        _secret("korrigo-postgresql", namespace, {"url": database, "migrate-url": database}),
        _secret(
            "korrigo-rabbitmq",
            namespace,
            {"url": f"amqp://{broker}:5672//", "management-url": f"http://{broker}:15672"},
        ),
        _secret(
            "korrigo-s3",
            namespace,
            {"access-key-id": known["s3-access-key-id"], "secret-access-key": known["s3-secret-access-key"]},
        ),
    ]


def _secret(name: str, namespace: str, values: dict[str, str]) -> Json:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}
