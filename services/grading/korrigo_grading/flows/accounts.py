"""Accounts: made, changed and listed by admins, by the CLI and at the first start.

Called by `rest.accounts` and by the front door (`ensure_admin`, `korrigo user`). Accounts are never deleted: the
audit trail names them; they are closed.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from korrigo_grading.domain import passwords
from korrigo_grading.events import accounts as events
from korrigo_grading.models import accounts, credentials
from korrigo_grading.models.accounts import Account
from korrigo_kit.auth import ROLES, Principal
from korrigo_kit.db import Tx
from korrigo_kit.errors import AlreadyExists, Invalid, NotFound, StateConflict
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.room import Runtime

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes accounts: a person, or the system for the CLI."""

    user_id: str = SYSTEM_ACTOR
    roles: tuple[str, ...] = ()


SYSTEM = Actor()


@dataclass(frozen=True, slots=True)
class Change:
    """What to change of an account; None leaves a thing, `clears_email` removes the address."""

    roles: Sequence[str] | None = None
    is_active: bool | None = None
    email: str | None = None
    clears_email: bool = False
    password: str | None = None
    must_change_password: bool | None = None


def actor(caller: Principal) -> Actor:
    """Name a person as the actor."""
    return Actor(caller.user_id, caller.roles)


def create(
    rt: Runtime,
    by: Actor,
    *,
    username: str,
    password: str,
    roles: Sequence[str],
    email: str | None = None,
    must_change_password: bool = False,
) -> Account:
    """Make an account.

    Raises AlreadyExists (USERNAME_TAKEN) and Invalid (INVALID_USERNAME, UNKNOWN_ROLE, PASSWORD_TOO_SHORT ...).
    """
    name = passwords.username(username)
    passwords.check(password, name)
    wanted = _roles(roles)
    with credentials.slot():
        stored = credentials.hashed(password)
    with rt.db.transaction(actor=by.user_id, roles=by.roles) as tx:
        made = accounts.insert(
            tx,
            # Random, not UUIDv7: the actor of every event must not tell when he was hired (decisions.md, Leaf v1).
            user_id=str(uuid.uuid4()),
            username=name,
            stored_password=stored,
            roles=wanted,
            email=email,
            must_change_password=must_change_password,
        )
        if made is None:
            raise AlreadyExists("USERNAME_TAKEN", "there is an account of this name")
        events.user_changed(
            tx,
            made.id,
            action="USER_CREATED",
            actor_id=by.user_id,
            metadata={"roles": list(made.roles), "version": made.version},
        )
    return made


def _anything(_: Account) -> None:
    return None


def change(
    rt: Runtime, by: Actor, user_id: str, wanted: Change, approve: Callable[[Account], None] = _anything
) -> Account:
    """Change an account; new roles, a new password, closing or opening it end its sessions in every room.

    `approve` is shown the account under its lock and raises when the caller has not seen that version. Raises
    NotFound (USER_NOT_FOUND), StateConflict (LAST_ADMIN, OWN_ACCOUNT) and the errors of `create`.
    """
    roles = _roles(wanted.roles) if wanted.roles is not None else None
    stored = None
    if wanted.password is not None:
        passwords.check(wanted.password, "")
        with credentials.slot():
            stored = credentials.hashed(wanted.password)
    with rt.db.transaction(actor=by.user_id, roles=by.roles) as tx:
        accounts.lock_accounts(tx)
        found = accounts.lock(tx, user_id)
        if found is None:
            raise NotFound("USER_NOT_FOUND", "there is no such account")
        approve(found)
        fields = _fields(found, wanted, roles, stored)
        if not fields:
            return found
        changed = accounts.update(tx, user_id, fields)
        if "admin" in found.roles and found.is_active and accounts.count_active_admins(tx) == 0:
            raise StateConflict("LAST_ADMIN", "this is the last admin who can log in")
        if user_id == by.user_id and not (changed.is_active and "admin" in changed.roles):
            raise StateConflict("OWN_ACCOUNT", "another admin has to close your account or to end your role")
        _tell(tx, by, changed, fields)
    return changed


def _fields(found: Account, wanted: Change, roles: list[str] | None, stored_password: str | None) -> dict[str, Any]:
    """Return the columns that really change."""
    email = None if wanted.clears_email else wanted.email or found.email
    offered = {
        "roles": (list(found.roles), roles),
        "is_active": (found.is_active, wanted.is_active),
        "must_change_password": (found.must_change_password, wanted.must_change_password),
        "password_hash": (None, stored_password),
    }
    fields: dict[str, Any] = {column: new for column, (old, new) in offered.items() if new is not None and new != old}
    return fields | ({"email": email} if email != found.email else {})


def _tell(tx: Tx, by: Actor, changed: Account, fields: dict[str, Any]) -> None:
    facts: dict[str, Any] = {
        "changed": sorted("password" if name == "password_hash" else name for name in fields),
        "version": changed.version,
    }
    if "roles" in fields:
        facts["roles"] = list(changed.roles)
    if "is_active" in fields:
        facts["is_active"] = changed.is_active
    ends_sessions = bool(fields.keys() & {"roles", "is_active", "password_hash", "must_change_password"})
    if ends_sessions:
        facts["sessions_ended"] = accounts.revoke_sessions(tx, changed.id)
    events.user_changed(tx, changed.id, action="USER_UPDATED", actor_id=by.user_id, metadata=facts)
    if ends_sessions:
        events.sessions_revoked(tx, changed.id, actor_id=by.user_id)


def _roles(roles: Sequence[str]) -> list[str]:
    unknown = sorted(set(roles) - set(ROLES))
    if unknown:
        raise Invalid("UNKNOWN_ROLE", "there is no such role", roles=unknown, known=list(ROLES))
    return sorted(set(roles))


def read(rt: Runtime, user_id: str) -> Account:
    """Read an account; raises NotFound (USER_NOT_FOUND)."""
    with rt.db.transaction() as tx:
        found = accounts.find(tx, user_id)
    if found is None:
        raise NotFound("USER_NOT_FOUND", "there is no such account")
    return found


def page(rt: Runtime, after_key: str, limit: int) -> list[Account]:
    """List accounts by folded name."""
    with rt.db.transaction() as tx:
        return accounts.page(tx, after_key, limit)


def key(account: Account) -> str:
    """Return what the list is ordered by."""
    return passwords.account_key(account.username)


# ---------------------------------------------------------------------------------- the front door and its CLI
def ensure_admin(rt: Runtime, password: str, username: str = "admin") -> bool:
    """Make the first admin when none can log in; tells whether it made one. Raises Invalid (PASSWORD_TOO_SHORT)."""
    with rt.db.transaction() as tx:
        if accounts.count_active_admins(tx):
            return False
    try:
        create(rt, SYSTEM, username=username, password=password, roles=["admin"])
    except AlreadyExists:
        # The account is there but closed, or no admin any more: whoever holds the machine may open it again.
        change(rt, SYSTEM, by_name(rt, username).id, Change(roles=["admin"], is_active=True, password=password))
    return True


def by_name(rt: Runtime, username: str) -> Account:
    """Find an account by its user name; raises NotFound (USER_NOT_FOUND)."""
    with rt.db.transaction() as tx:
        found = accounts.find_by_key(tx, passwords.account_key(username))
    if found is None:
        raise NotFound("USER_NOT_FOUND", "there is no such account")
    return found


def add_user(
    rt: Runtime,
    username: str,
    password: str,
    roles: Sequence[str],
    *,
    email: str | None = None,
    must_change_password: bool = False,
) -> Account:
    """Make an account for `korrigo user add`; errors as `create`."""
    return create(
        rt,
        SYSTEM,
        username=username,
        password=password,
        roles=roles,
        email=email,
        must_change_password=must_change_password,
    )


def set_password(rt: Runtime, username: str, password: str, *, must_change_password: bool = False) -> Account:
    """Give an account a new password for `korrigo user passwd`; ends its sessions. Errors as `change`."""
    wanted = Change(password=password, must_change_password=must_change_password)
    return change(rt, SYSTEM, by_name(rt, username).id, wanted)


def list_users(rt: Runtime) -> list[Account]:
    """List every account for `korrigo user list`."""
    found: list[Account] = []
    while True:
        some = page(rt, key(found[-1]) if found else "", _PAGE)
        found += some
        if len(some) < _PAGE:
            return found
