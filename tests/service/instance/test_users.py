"""Users and groups, as the host's databases know them."""

import grp
import os
import pwd

import pytest

from nsupervisor.linux.privileges import own_privileges
from nsupervisor.service.instance.users import IdentityError, UserIdentity, resolve_user, without_own


def test_without_a_user_it_stays_what_the_supervisor_is():
    me = pwd.getpwuid(os.getuid())
    it = resolve_user(None)
    assert (it.uid, it.gid, it.groups) == (None, None, None)
    assert (it.name, it.home) == (me.pw_name, me.pw_dir)


def test_a_name_brings_its_groups_as_a_login_does():
    entry = pwd.getpwnam("nobody")
    it = resolve_user("nobody")
    assert (it.uid, it.gid, it.groups) == (entry.pw_uid, entry.pw_gid, (entry.pw_gid,))


def test_a_group_after_the_colon_replaces_the_primary_one():
    adm = grp.getgrnam("adm").gr_gid
    it = resolve_user("nobody:adm", ["tty", "4242"])
    assert it.gid == adm
    assert it.groups == (adm, grp.getgrnam("tty").gr_gid, 4242)


def test_numbers_need_not_be_known():
    it = resolve_user("54321:4242")
    assert (it.uid, it.gid, it.groups, it.name, it.home) == (54321, 4242, (4242,), "", "/")


@pytest.mark.parametrize(
    ("user", "groups", "text"),
    [
        ("no-such-user", (), 'no user "no-such-user" on this host; add one with useradd, or give a number'),
        ("nobody:no-such-group", (), 'no group "no-such-group" on this host'),
        ("nobody", ("no-such-group",), 'no group "no-such-group" on this host'),
    ],
)
def test_unknown_ones_are_told(user, groups, text):
    with pytest.raises(IdentityError, match=text):
        resolve_user(user, groups)


def test_ids_of_its_own_are_not_set_without_the_privilege_to_set_groups() -> None:
    identity = UserIdentity(os.geteuid(), os.getegid(), (os.getegid(),), "", "/", "/bin/sh")
    weak = own_privileges()._replace(capabilities=0)
    assert without_own(identity, lambda: weak)[:3] == (None, None, None)
    assert without_own(identity, lambda: weak._replace(capabilities=-1)) == identity
    other = identity._replace(uid=os.geteuid() + 1)
    assert without_own(other, lambda: weak) == other
