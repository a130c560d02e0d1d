"""What `korrigo up` sets: values of the normal settings, derived from the home.

Nothing of the product knows that it is embedded. `korrigo up` gives these variables to its children; the other
commands take them too when they meet a home and no database of their own, so that `korrigo user list` works on
the instance that runs. A variable that the caller has set himself is left as it is.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from korrigo import general_log
from korrigo.home import Home, is_in_use, keep_secret, replace_file
from korrigo_kit.errors import Invalid, Unavailable

ROOMS = ("ingest", "grading", "render", "audit")
MIN_PASSWORD = 12
# Read by prometheus_client and by korrigo_kit.telemetry.samples, which this process does without.
SAMPLES_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
# PKCS #8 frame of an Ed25519 private key (RFC 8410, 7): the 32 random bytes follow.
_ED25519_FRAME = bytes.fromhex("302e020100300506032b657004220420")

# What `korrigo migrate` installs anew each time, beside the rooms' own steps: views, functions, rights, queues.
_INSTALLING = ("korrigo.playbook", "korrigo_kit.migrate", "korrigo_kit.pgmq")
# Which code installed them last: a comment, because it needs no table and stays with what it tells of.
FINGERPRINT_SQL = "coalesce(obj_description(to_regnamespace('playbook'), 'pg_namespace'), '')"


def fingerprint() -> str:
    """Name the code that installs views, functions and rights; another release's differs when that code does."""
    digest = hashlib.sha256()
    for module in _INSTALLING:
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()


def has(environ: Mapping[str, str], variable: str) -> bool:
    """Tell whether the caller has set a variable, directly or as a file."""
    return bool(environ.get(variable) or environ.get(f"{variable}_FILE"))


def is_embedded(environ: Mapping[str, str]) -> bool:
    """Tell whether the database is ours to run."""
    return not has(environ, "KORRIGO_DATABASE__URL")


def derive(home: Home, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of a child of this home's instance."""
    sockets = home.socket_folder()
    own = {
        "KORRIGO_BROKER__URL": "pgmq://",
        "KORRIGO_BLOBS__URL": f"file://{home.blobs}",
        "KORRIGO_LOG__AUDIT_PATH": str(home.logs / "audit.log"),
        "KORRIGO_LOG__GENERAL_PATH": str(home.logs / general_log.NAME),
        **{f"KORRIGO_RPC__{room.upper()}": f"unix:{sockets}/rpc-{room}.sock" for room in ROOMS},
    }
    files = {
        "KORRIGO_DATABASE__URL": database_url_file(home),
        "KORRIGO_RPC__SECRET": home.secrets / "rpc-secret",
        "KORRIGO_AUTH__SIGNING_KEY": home.secrets / "signing-key.pem",
        # Made with the secrets; a home of a release that had none yet goes without until its next start.
        **{name: path for name, path in _previous(home).items() if path.exists()},
    }
    found = {name: value for name, value in environ.items() if value or not name.startswith("KORRIGO_")}
    found["KORRIGO_HOME"] = str(home.root)
    found |= {name: value for name, value in own.items() if not has(environ, name)}
    found |= {f"{name}_FILE": str(path) for name, path in files.items() if not has(environ, name)}
    return found


def database_url_file(home: Home) -> Path:
    """Return the path of the file that holds the administrator's URL of the embedded database."""
    return home.secrets / "database-url"


def _previous(home: Home) -> dict[str, Path]:
    """Name the files of what is still accepted after a change; empty but for that time."""
    return {
        "KORRIGO_RPC__PREVIOUS_SECRET": home.secrets / "rpc-secret-previous",
        "KORRIGO_AUTH__PUBLIC_KEYS": home.secrets / "public-keys.pem",
    }


def make_secrets(home: Home) -> None:
    """Make what is secret in this installation, once."""
    home.secret("rpc-secret")
    keep_secret(home.secrets / "signing-key.pem", new_signing_key())
    for path in _previous(home).values():
        if not path.exists():
            replace_file(path, "")


def new_signing_key() -> str:
    """Make an Ed25519 private key, PEM."""
    # Written by hand: the library that could do it would stay in the supervisor's memory.
    body = base64.b64encode(_ED25519_FRAME + secrets.token_bytes(32)).decode()
    label = "PRIVATE KEY"
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----"


def check_words(words: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a word that is not one of the known; raises Invalid UNKNOWN_NAME."""
    for word in words:
        if word not in known:
            raise Invalid("UNKNOWN_NAME", f"{word} is none of {', '.join(known)}")


def empty_samples(home: Home) -> None:
    """Begin to count anew: every process starts with `korrigo up`, so all counters start from 0 together."""
    home.samples.mkdir(mode=0o700, exist_ok=True)
    for file in home.samples.iterdir():
        file.unlink(missing_ok=True)


def join_samples() -> None:
    """Let what this command counts be seen at /metrics of the instance of its home, while that runs.

    Call before anything of a room is imported: a metric keeps the kind of numbers that it was made with.
    """
    home = Home.locate()
    if is_embedded(os.environ) and is_in_use(home) and home.samples.is_dir():
        os.environ.setdefault(SAMPLES_VARIABLE, str(home.samples))


def attach() -> None:
    """Let this process use the instance of its home, unless it was given a database.

    Raises Unavailable NOT_SET_UP when there is neither.
    """
    if not is_embedded(os.environ):
        return
    home = Home.locate()
    if not database_url_file(home).exists():
        raise Unavailable(
            "NOT_SET_UP", f"no KORRIGO_DATABASE__URL, and no instance in {home.root}: start one with `korrigo up`"
        )
    os.environ.update(derive(home, os.environ))


def admin_password(home: Home, environ: Mapping[str, str], *, is_first_start: bool) -> tuple[str, bool]:
    """Return the first password of user admin ("" = none is due) and whether it was made now.

    Raises Invalid PASSWORD_TOO_SHORT for a given one that is too short.
    """
    given = environ.get("KORRIGO_ADMIN_PASSWORD", "")
    if given:
        if len(given) < MIN_PASSWORD:
            raise Invalid("PASSWORD_TOO_SHORT", f"KORRIGO_ADMIN_PASSWORD needs at least {MIN_PASSWORD} characters")
        return given, False
    if not is_first_start:
        return "", False
    is_new = not home.admin_password_file.exists()
    return keep_secret(home.admin_password_file, secrets.token_urlsafe(15)), is_new


def note_database(home: Home, url: str) -> None:
    """Write down the administrator's URL for the children (it changes when the home is moved)."""
    path = database_url_file(home)
    if not path.exists() or path.read_text().strip() != url:
        replace_file(path, url + "\n")
