"""Logging in and out, and changing one's own password. Called by `rest.accounts`; pruning by the sweeper.

Guesses are limited (reliability.md 9): five failures of an account in 15 minutes, and a larger number from one
client address over all accounts. Somebody who has logged in from his address before is only held to his own
failures from there, so that neither a stranger who tries his name nor a colleague who mistypes locks him out.
Logins of one account follow each other under a lock: a hundred guesses at once count as a hundred.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from korrigo_grading import metrics
from korrigo_grading.domain import passwords
from korrigo_grading.events import accounts as events
from korrigo_grading.models import accounts, credentials
from korrigo_grading.models.accounts import Account
from korrigo_grading.settings import LoginSettings
from korrigo_kit.auth import Principal, Signer, new_csrf
from korrigo_kit.db import Tx
from korrigo_kit.errors import Exhausted, Invalid, NotFound, StateConflict, Unauthenticated
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.room import Runtime
from korrigo_kit.settings import AuthSettings, SettingsError

# Every event of revoked sessions carries all of an account's (at most 1 MiB between rooms).
_MAX_REFUSED_SESSIONS = 2000
_KEEP_SESSIONS_DAYS = 30
# Where a session of a machine comes from; it never logged in.
_MACHINE = "machine"
# Whose long-lived tokens may lie in files: they read and hear, and change nothing.
_MACHINE_ROLES = {"auditor"}


@dataclass(frozen=True, slots=True)
class Login:
    """A session that was opened, and its token."""

    account: Account
    token: str
    expires_in: int


def log_in(rt: Runtime, username: str, password: str, address: str) -> Login:
    """Open a session.

    Raises Unauthenticated (INVALID_CREDENTIALS) alike for a wrong password, an unknown and a closed account, and
    Exhausted (TOO_MANY_ATTEMPTS, with `retry_after_seconds`).
    """
    settings = rt.settings.get(LoginSettings)
    sha = accounts.account_sha(username)
    # Who must wait is told so at once, or a flood of guesses would keep everybody else from hashing.
    with rt.db.transaction() as tx:
        _check_failures(tx, settings, sha, address, accounts.find_by_key(tx, passwords.account_key(username)))
    login: Login | None = None
    with credentials.slot(), rt.db.transaction() as tx:
        accounts.lock_attempts(tx, sha)
        found = accounts.lock_for_login(tx, username)
        account, stored = found if found else (None, None)
        _check_failures(tx, settings, sha, address, account)
        if credentials.verify(stored, password) and account is not None and stored is not None:
            if credentials.is_outdated(stored):
                tx.run("UPDATE users SET password_hash = %s WHERE id = %s", (credentials.hashed(password), account.id))
            accounts.forget_failures(tx, sha, address)
            login = _open(rt, tx, account, address)
        else:
            accounts.add_attempt(tx, "login", sha, address)
    if login is None:
        metrics.grading_login_failures_total.inc()
        raise Unauthenticated("INVALID_CREDENTIALS", "the user name or the password is wrong")
    return login


def _check_failures(tx: Tx, settings: LoginSettings, sha: str, address: str, account: Account | None) -> None:
    window = settings.window_seconds
    if account is not None and accounts.is_known_address(tx, account.id, address):
        checks = [(settings.account_failures, {"sha": sha, "address": address})]
    else:
        checks = [(settings.account_failures, {"sha": sha}), (settings.address_failures, {"address": address})]
    for limit, whose in checks:
        failed = accounts.attempts(tx, "login", window, limit, **whose)
        if failed.count >= limit:
            metrics.grading_login_failures_total.inc()
            raise Exhausted(
                "TOO_MANY_ATTEMPTS",
                "too many failed logins; wait",
                retry_after_seconds=failed.retry_after_seconds,
            )


def _open(rt: Runtime, tx: Tx, account: Account, address: str) -> Login:
    if len(accounts.refused_sessions(tx, account.id)) >= _MAX_REFUSED_SESSIONS:
        raise Exhausted("TOO_MANY_SESSIONS", "this account logs in and out too often", retry_after_seconds=600)
    return _begin(rt, tx, account, address, rt.settings.auth.token_seconds)


def _begin(rt: Runtime, tx: Tx, account: Account, address: str, seconds: int) -> Login:
    key = rt.settings.watched(AuthSettings).latest().signing_key
    if key is None:
        raise SettingsError("KORRIGO_AUTH__SIGNING_KEY is missing")
    signer = Signer(key.get_secret_value(), seconds)
    session_id = str(uuid.uuid4())
    accounts.open_session(tx, session_id, account.id, address, signer.token_seconds)
    principal = Principal(
        user_id=account.id,
        username=account.username,
        roles=account.roles,
        session_id=session_id,
        csrf=new_csrf(),
        must_change_password=account.must_change_password,
    )
    return Login(account, signer.token(principal), signer.token_seconds)


def issue(rt: Runtime, username: str, seconds: int, actor_id: str = SYSTEM_ACTOR) -> Login:
    """Open a long session for a machine such as Alertmanager, which cannot log in. Started by `korrigo user token`.

    It ends like any other: with `sessions clear`, a new password, a change of the account. Raises NotFound
    (USER_NOT_FOUND) and StateConflict (NOT_A_MACHINE_ACCOUNT) for accounts that may do more than look.
    """
    with rt.db.transaction(actor=actor_id) as tx:
        found = accounts.find_by_key(tx, passwords.account_key(username))
        account = accounts.lock(tx, found.id) if found else None
        if account is None:
            raise NotFound("USER_NOT_FOUND", "there is no such account")
        if not account.is_active or account.must_change_password or not set(account.roles) <= _MACHINE_ROLES:
            raise StateConflict(
                "NOT_A_MACHINE_ACCOUNT", "a token for a machine needs an active account whose only role is auditor"
            )
        login = _begin(rt, tx, account, _MACHINE, seconds)
        events.user_changed(
            tx, account.id, action="TOKEN_ISSUED", actor_id=actor_id, metadata={"expires_in_seconds": seconds}
        )
    return login


def last_end(rt: Runtime) -> datetime | None:
    """Tell when the last of the sessions that live will end."""
    with rt.db.transaction() as tx:
        return accounts.last_session_end(tx)


def log_out(rt: Runtime, caller: Principal) -> None:
    """End the caller's session in every room; nothing when it has ended already."""
    with rt.db.transaction(actor=caller.user_id, roles=caller.roles) as tx:
        if accounts.revoke_session(tx, caller.session_id):
            events.sessions_revoked(tx, caller.user_id, actor_id=caller.user_id)


def who(rt: Runtime, caller: Principal) -> Account:
    """Read the caller's own account; raises Unauthenticated (SESSION_REVOKED) when it is no more."""
    with rt.db.transaction() as tx:
        found = accounts.find(tx, caller.user_id)
    if found is None or not found.is_active:
        raise Unauthenticated("SESSION_REVOKED", "the account is closed")
    return found


def change_password(rt: Runtime, caller: Principal, current: str, new: str, address: str) -> Login:
    """Change one's own password: ends all one's sessions and opens a new one.

    Raises Invalid (WRONG_PASSWORD, PASSWORD_UNCHANGED and those of `domain.passwords`) and Exhausted
    (TOO_MANY_ATTEMPTS).
    """
    settings = rt.settings.get(LoginSettings)
    passwords.check(new, caller.username)
    sha = accounts.account_sha(caller.username)
    login: Login | None = None
    with credentials.slot(), rt.db.transaction(actor=caller.user_id, roles=caller.roles) as tx:
        accounts.lock_attempts(tx, sha)
        _check_changes(tx, settings, sha)
        accounts.add_attempt(tx, "password_change", sha, address)
        found = accounts.lock(tx, caller.user_id)
        if found is not None and credentials.verify(accounts.password_hash(tx, caller.user_id), current):
            if new == current:
                raise Invalid("PASSWORD_UNCHANGED", "the new password is the old one")
            changed = accounts.update(
                tx, found.id, {"password_hash": credentials.hashed(new), "must_change_password": False}
            )
            _note_change(tx, caller, changed)
            login = _open(rt, tx, changed, address)
    if login is None:
        raise Invalid("WRONG_PASSWORD", "the current password is wrong")
    return login


def _check_changes(tx: Tx, settings: LoginSettings, sha: str) -> None:
    limit = settings.password_changes_per_hour
    made = accounts.attempts(tx, "password_change", 3600, limit, sha=sha)
    if made.count >= limit:
        raise Exhausted(
            "TOO_MANY_ATTEMPTS", "too many attempts to change the password; wait",
            retry_after_seconds=made.retry_after_seconds,
        )  # fmt: skip


def _note_change(tx: Tx, caller: Principal, changed: Account) -> None:
    ended = accounts.revoke_sessions(tx, changed.id)
    events.user_changed(
        tx,
        changed.id,
        action="USER_UPDATED",
        actor_id=caller.user_id,
        metadata={"changed": ["password"], "sessions_ended": ended, "version": changed.version},
    )
    events.sessions_revoked(tx, changed.id, actor_id=caller.user_id)


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """An account with sessions that live."""

    user_id: str
    username: str
    sessions: int


def logged_in(rt: Runtime) -> list[LoggedIn]:
    """List who is logged in."""
    with rt.db.transaction() as tx:
        return [LoggedIn(*row) for row in accounts.with_sessions(tx)]


def clear(rt: Runtime, user_id: str, actor_id: str = SYSTEM_ACTOR) -> int:
    """End every session of an account in every room; returns how many lived. Started by `korrigo sessions clear`."""
    with rt.db.transaction(actor=actor_id) as tx:
        if accounts.lock(tx, user_id) is None:
            raise NotFound("USER_NOT_FOUND", "there is no such account")
        ended = accounts.revoke_sessions(tx, user_id)
        if ended:
            events.user_changed(
                tx, user_id, action="SESSIONS_CLEARED", actor_id=actor_id, metadata={"sessions_ended": ended}
            )
            events.sessions_revoked(tx, user_id, actor_id=actor_id)
    return ended


def prune(rt: Runtime) -> None:
    """Delete sessions that ended long ago and attempts that no window reaches."""
    with rt.db.transaction() as tx:
        accounts.prune_sessions(tx, _KEEP_SESSIONS_DAYS)
        accounts.prune_attempts(tx)
