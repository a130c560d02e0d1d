"""Public keys as settings: plain, or in a certificate, which is all that Helm can make of a pair."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from korrigo_kit.auth import Principal, Signer, Verifier, public_keys
from korrigo_kit.settings import SettingsError, load

PEM = serialization.Encoding.PEM
NOW = datetime.now(UTC)


def certificate(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, *, ends: datetime) -> str:
    """Make a self-signed certificate, as `genSelfSignedCertWithKey` does."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "korrigo")])
    unsigned = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=400))
        .not_valid_after(ends)
    )
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    return unsigned.sign(key, algorithm).public_bytes(PEM).decode()


def plain(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def listed(text: str) -> list[bytes]:
    found = public_keys(load(environ={"KORRIGO_AUTH__PUBLIC_KEYS": text}).auth)
    return [accepted.key.public_bytes_raw() for accepted in found]


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def test_certificates_and_plain_keys_stand_side_by_side() -> None:
    one, two = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    assert listed(certificate(one, ends=NOW + timedelta(days=9)) + plain(two)) == [raw(one), raw(two)]


def test_a_certificate_is_only_a_way_to_write_a_key() -> None:
    """Its dates mean nothing: a cluster must not lock everybody out ten years after its installation."""
    key = Ed25519PrivateKey.generate()
    assert listed(certificate(key, ends=NOW - timedelta(days=1))) == [raw(key)]


def test_a_certificate_may_be_accepted_for_a_while() -> None:
    key = Ed25519PrivateKey.generate()
    text = f"Accepted-Until: 2020-01-01T00:00:00Z\n{certificate(key, ends=NOW + timedelta(days=9))}"
    (accepted,) = public_keys(load(environ={"KORRIGO_AUTH__PUBLIC_KEYS": text}).auth)
    assert not accepted.is_good


def test_who_signs_with_the_key_is_known_by_the_certificate() -> None:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    environ = {"KORRIGO_AUTH__PUBLIC_KEYS": certificate(key, ends=NOW + timedelta(days=9))}
    token = Signer(private, 60).token(Principal("an-id", "odile", ("marker",), session_id="a-session"))
    assert Verifier(load(environ=environ).auth).verify(token).user_id == "an-id"
    assert listed(environ["KORRIGO_AUTH__PUBLIC_KEYS"]) == [raw(key)]


def test_what_holds_no_ed25519_key_is_refused_by_name() -> None:
    other = certificate(ec.generate_private_key(ec.SECP256R1()), ends=NOW + timedelta(days=9))
    with pytest.raises(SettingsError, match="no Ed25519 key"):
        listed(other)
    with pytest.raises(SettingsError, match="a CERTIFICATE cannot be read"):
        listed("-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----")
    with pytest.raises(SettingsError, match="a PUBLIC KEY cannot be read"):
        listed("-----BEGIN PUBLIC KEY-----\nbm90IG9uZQ==\n-----END PUBLIC KEY-----")
