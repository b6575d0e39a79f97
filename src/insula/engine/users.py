"""Who a process runs as: `name`, `uid`, `name:group`, `uid:gid`, looked up in the instance's own /etc/passwd and /etc/group.

The rules are those of runc's libcontainer/user, which the Docker Engine uses: a number needs no entry, a name does;
supplementary groups come with a user that was found, unless a group was named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from msgspec import Struct

from insula.errors import Invalid
from insula.host.rootfd import open_in

_LARGEST_ID = (1 << 31) - 1
_LARGEST_FILE = 4 * 1024 * 1024


class Accounts(Struct, frozen=True):
    """The texts of /etc/passwd and /etc/group; empty where there is none."""

    passwd: str = ""
    group: str = ""


class User(Struct, frozen=True):
    """A user, looked up."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def read_accounts(root: str) -> Accounts:
    """Read both files below `root`, symlinks in them resolved there. Blocks. Missing or odd files count as empty."""
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return Accounts(_read(descriptor, "etc/passwd"), _read(descriptor, "etc/group"))
    finally:
        os.close(descriptor)


def _read(root: int, path: str) -> str:
    try:
        # O_NONBLOCK: an image may have a FIFO there.
        descriptor = open_in(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        with os.fdopen(descriptor, "rb") as file:
            return file.read(_LARGEST_FILE).decode("utf-8", "replace")
    except OSError:
        return ""


def look_up(user: str, accounts: Accounts, extra_groups: Sequence[str] = ()) -> User:
    """The user that `user` names. Raises Invalid with the Docker Engine's sentences."""
    name, _, group = user.partition(":")
    uid = _number(name) if name else 0
    entry = next((row for row in _passwd(accounts.passwd) if _matches(row, name, uid)), None)
    if entry is None and uid is None:
        raise Invalid(f"unable to find user {name}: no matching entries in passwd file", field="user")
    found_uid, gid, login, home = entry or (uid or 0, 0, "", "/")
    groups = tuple(number for _, number, members in _groups(accounts.group) if login and login in members)
    if group:
        gid, groups = _group_id(group, accounts), ()
    extra = tuple(_group_id(each, accounts) for each in extra_groups)
    return User(found_uid, gid, tuple(dict.fromkeys((gid, *groups, *extra))), home or "/")


def _matches(row: tuple[int, int, str, str], name: str, uid: int | None) -> bool:
    return row[2] == name if uid is None else row[0] == uid or (bool(name) and row[2] == name)


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    if number > _LARGEST_ID:
        raise Invalid(f"uids and gids must be in range 0-{_LARGEST_ID}", field="user")
    return number


def _group_id(group: str, accounts: Accounts) -> int:
    number = _number(group)
    for name, gid, _ in _groups(accounts.group):
        if name == group or gid == number:
            return gid
    if number is None:
        raise Invalid(f"unable to find group {group}: no matching entries in group file", field="user")
    return number


def _passwd(text: str) -> Iterator[tuple[int, int, str, str]]:
    """uid, gid, name, home of each well-formed line, see passwd(5)."""
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) >= 6 and fields[2].isdigit() and fields[3].isdigit():
            yield int(fields[2]), int(fields[3]), fields[0], fields[5]


def _groups(text: str) -> Iterator[tuple[str, int, frozenset[str]]]:
    """name, gid, members of each well-formed line, see group(5)."""
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) >= 3 and fields[2].isdigit():
            members = fields[3].split(",") if len(fields) > 3 else []
            yield fields[0], int(fields[2]), frozenset(member for member in members if member)
