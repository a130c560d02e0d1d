"""The test cluster's certificate authority, its certificates and the kubeconfig files made of them.

Called by `cluster.node` before anything starts. Kubernetes reads who a client is from its certificate: the common name
is the user, the organisation the group (https://kubernetes.io/docs/reference/access-authn-authz/authentication/).
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.plan import API_PORT, API_SERVICE_ADDRESS, DOMAIN, NODE, NODE_ADDRESS, Plan

LIFETIME = datetime.timedelta(days=7)
# file name: user, groups
CLIENTS = {
    "admin": ("korrigo-test-admin", ("system:masters",)),
    "kubelet": (f"system:node:{NODE}", ("system:nodes",)),
    "controller-manager": ("system:kube-controller-manager", ()),
    "scheduler": ("system:kube-scheduler", ()),
    "proxy": ("system:kube-proxy", ()),
    "dns": ("system:coredns", ()),
    "to-kubelet": ("kube-apiserver-to-kubelet", ("system:masters",)),
    "prometheus-operator": ("prometheus-operator", ("system:masters",)),
}
_SERVICE = "kubernetes.default.svc"
API_NAMES = ("localhost", "kubernetes", "kubernetes.default", _SERVICE, f"{_SERVICE}.{DOMAIN}")


class Authority:
    """A certificate authority that writes what it signs into one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "korrigo-test-cluster")])
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = _builder(self._name, self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        _write_pair(folder, "ca", self._key, builder.sign(self._key, hashes.SHA256()))

    def sign_client(self, name: str, user: str, groups: Sequence[str]) -> None:
        """Write NAME.crt and NAME.key for a user in groups."""
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, user)])
        self._sign(name, subject, ExtendedKeyUsageOID.CLIENT_AUTH, ())

    def sign_server(self, name: str, names: Sequence[str], addresses: Sequence[str]) -> None:
        """Write NAME.crt and NAME.key for a server that answers to these names and addresses."""
        known = [x509.DNSName(host) for host in names]
        known_addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._sign(name, subject, ExtendedKeyUsageOID.SERVER_AUTH, (*known, *known_addresses))

    def _sign(
        self, name: str, subject: x509.Name, usage: x509.ObjectIdentifier, known_as: Sequence[x509.GeneralName]
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject, self._name, key.public_key())
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if known_as:
            builder = builder.add_extension(x509.SubjectAlternativeName(known_as), critical=False)
        _write_pair(self._folder, name, key, builder.sign(self._key, hashes.SHA256()))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # a clock that is set back a little while the cluster runs must not end it
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
    )


def _write_pair(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_key(folder / f"{name}.key", key)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def write_certificates(plan: Plan) -> None:
    """Write every key and certificate of the cluster into its pki folder."""
    authority = Authority(plan.pki)
    for name, (user, groups) in CLIENTS.items():
        authority.sign_client(name, user, groups)
    authority.sign_server("apiserver", API_NAMES, ("127.0.0.1", NODE_ADDRESS, API_SERVICE_ADDRESS))
    authority.sign_server("kubelet-server", (NODE,), ("127.0.0.1", NODE_ADDRESS))
    write_service_account_keys(plan.pki)


def write_service_account_keys(folder: Path) -> None:
    """Write the pair that signs and verifies service accounts' tokens."""
    key = ec.generate_private_key(ec.SECP256R1())
    _write_key(folder / "service-accounts.key", key)
    # the API server reads no public key out of a PKCS 8 private one
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "service-accounts.pub").write_bytes(public)


def write_kubeconfigs(plan: Plan, outside_port: int) -> None:
    """Write the components' kubeconfigs, and the administrator's for the forwarded port on the machine's loopback."""
    inside = f"https://{NODE_ADDRESS}:{API_PORT}"
    for name in CLIENTS:
        write_kubeconfig(plan.pki, name, inside, plan.config / f"{name}.kubeconfig")
    write_kubeconfig(plan.pki, "admin", f"https://127.0.0.1:{outside_port}", plan.kubeconfig)


def write_kubeconfig(pki: Path, client: str, server: str, path: Path, *, namespace: str = "default") -> None:
    """Write the kubeconfig of a client whose certificate lies in a folder."""

    def encoded(file: str) -> str:
        return base64.b64encode((pki / file).read_bytes()).decode()

    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "korrigo", "cluster": {"server": server, "certificate-authority-data": encoded("ca.crt")}}
        ],
        "users": [
            {
                "name": client,
                "user": {
                    "client-certificate-data": encoded(f"{client}.crt"),
                    "client-key-data": encoded(f"{client}.key"),
                },
            }
        ],
        "contexts": [{"name": "korrigo", "context": {"cluster": "korrigo", "user": client, "namespace": namespace}}],
        "current-context": "korrigo",
    }
    path.touch(mode=0o600)
    # JSON is YAML, and needs no library here
    path.write_text(json.dumps(content, indent=2))
