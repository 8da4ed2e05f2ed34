"""The user of a program: from the configured name to numeric ids."""

import grp
import os
import pwd
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nsupervisor.linux.privileges import SETGID, SETUID, Privileges, own_privileges


class IdentityError(Exception):
    """A user or group that this host does not know; the message says which, and what to do."""


class UserIdentity(NamedTuple):
    """The user that a program runs as. `uid`, `gid` and `groups` are None if they stay those of the supervisor."""

    uid: int | None
    gid: int | None
    groups: tuple[int, ...] | None
    name: str
    home: str
    shell: str


def resolve_user(
    user: str | None, supplementary_groups: Sequence[str] = (), keeps_own_groups: bool = True
) -> UserIdentity:
    """Look up `user` ("www-data", "33", "www-data:adm", "1000:1000") and further groups in the host's databases.

    A number need not be in the database: it then has no name, "/" as its home and no groups of its own. As with login,
    a user without an explicit group gets their primary group and those that list them in group(5). Without `user` the
    supervisor's own groups stay if there are further groups and `keeps_own_groups` is set.

    Raises IdentityError.
    """
    extra = tuple(_gid(group) for group in supplementary_groups)
    if user is None:
        own_entry = _entry_of_uid(os.getuid())
        own_groups = os.getgroups() if keeps_own_groups else []
        groups = (*own_groups, *extra) if extra else None
        return UserIdentity(None, None, groups, own_entry.pw_name, own_entry.pw_dir, own_entry.pw_shell)
    name, _, group = user.partition(":")
    entry = _entry(name)
    gid = _gid(group) if group else entry.pw_gid
    listed = os.getgrouplist(entry.pw_name, gid) if entry.pw_name else [gid]
    return UserIdentity(
        entry.pw_uid, gid, tuple(dict.fromkeys((*listed, *extra))), entry.pw_name, entry.pw_dir, entry.pw_shell
    )


def without_own(identity: UserIdentity, privileges: Callable[[], Privileges] = own_privileges) -> UserIdentity:
    """Return the identity without ids to change to, if they are this process's and it may not change ids.

    Such a program keeps the groups of this process: without privileges none can be given up either.
    """
    if (identity.uid, identity.gid) != (os.geteuid(), os.getegid()):
        return identity
    own = privileges()
    if own.has(SETUID) and own.has(SETGID):
        return identity
    return identity._replace(uid=None, gid=None, groups=None)


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        pass
    if not user.isdecimal():
        raise IdentityError(f'no user "{user}" on this host; add one with useradd, or give a number')
    return _entry_of_uid(int(user))


def _entry_of_uid(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return pwd.struct_passwd(("", "", uid, uid, "", "/", "/bin/sh"))


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        pass
    if not group.isdecimal():
        raise IdentityError(f'no group "{group}" on this host; add one with groupadd, or give a number')
    return int(group)
