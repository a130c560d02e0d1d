"""Which user the database runs as, and whether that user can get at the files it needs.

PostgreSQL refuses to run as root. When the front door is started as root the database gets user `korrigo-db`
when the machine has one, else `nobody`; otherwise it simply runs as the user who started it. Used by
`korrigo.postgres` only.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from korrigo_kit.errors import Unavailable

DATABASE_USERS = ("korrigo-db", "nobody")


@dataclass(frozen=True, slots=True)
class User:
    """An account to run a child as; `is_dropped` = it is not the account of this process."""

    name: str
    user_id: int
    group_id: int
    is_dropped: bool


def database_user() -> User:
    """Choose the account of the database; raises Unavailable DATABASE_USER_MISSING (root without `nobody`)."""
    if os.geteuid() != 0:
        return User(str(os.geteuid()), os.geteuid(), os.getegid(), is_dropped=False)
    for name in DATABASE_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return User(name, entry.pw_uid, entry.pw_gid, is_dropped=True)
    raise Unavailable("DATABASE_USER_MISSING", f"started as root, but there is no user {' or '.join(DATABASE_USERS)}")


def first_unreachable(path: Path, user: User) -> Path | None:
    """Return the first folder on the way to `path` that `user` cannot pass (or `path`); None when all is well.

    A forked child asks as that user, because mode bits alone do not know about access lists and name spaces.
    Call before any thread exists.
    """
    if not user.is_dropped:
        return None if os.access(path, os.X_OK) else path
    way = [*reversed(path.parents), path]
    pid = os.fork()
    if pid == 0:
        answer = len(way) + 1
        try:
            os.setgroups([])
            os.setresgid(user.group_id, user.group_id, user.group_id)
            os.setresuid(user.user_id, user.user_id, user.user_id)
            answer = next((at for at, folder in enumerate(way) if not os.access(folder, os.X_OK)), len(way))
        finally:
            os._exit(answer)
    answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if answer > len(way):
        raise Unavailable("CANNOT_DROP_PRIVILEGES", f"cannot become user {user.name}: a capability is missing")
    return None if answer == len(way) else way[answer]
