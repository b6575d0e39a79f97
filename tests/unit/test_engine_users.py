"""Users and groups as runc's libcontainer/user finds them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from insula.engine.users import Accounts, User, look_up, read_accounts
from insula.errors import Invalid

ACCOUNTS = Accounts(
    "root:x:0:0:root:/root:/bin/sh\nbroken line\napp:x:1000:1001::/home/app:/bin/sh\n42:x:77:78::/odd:/bin/sh\n",
    "root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nstaff:x:50:app\n",
)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", User(0, 0, (0, 10), "/root")),
        ("root", User(0, 0, (0, 10), "/root")),
        ("0", User(0, 0, (0, 10), "/root")),
        ("app", User(1000, 1001, (1001, 10, 50), "/home/app")),
        ("1000", User(1000, 1001, (1001, 10, 50), "/home/app")),
        ("app:staff", User(1000, 50, (50,), "/home/app")),
        ("app:7", User(1000, 7, (7,), "/home/app")),
        ("4000", User(4000, 0, (0,), "/")),
        ("4000:5000", User(4000, 5000, (5000,), "/")),
    ],
)
def test_look_up(user: str, expected: User) -> None:
    assert look_up(user, ACCOUNTS) == expected


def test_groups_added() -> None:
    assert look_up("app:1001", ACCOUNTS, ("staff", "99")).groups == (1001, 50, 99)


@pytest.mark.parametrize(
    ("user", "sentence"),
    [
        ("nobody", "unable to find user nobody: no matching entries in passwd file"),
        ("app:nogroup", "unable to find group nogroup: no matching entries in group file"),
        ("99999999999", "must be in range"),
    ],
)
def test_refusals(user: str, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        look_up(user, ACCOUNTS)


def test_accounts_are_read_inside_the_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (tmp_path / "secret").write_text("evil:x:0:0::/:/bin/sh\n")
    (root / "etc" / "passwd").symlink_to("../../secret")
    os.mkfifo(root / "etc" / "group")
    assert read_accounts(str(root)) == Accounts("", "")
    (root / "secret").write_text("good:x:1:1::/:/bin/sh\n")
    assert read_accounts(str(root)).passwd == "good:x:1:1::/:/bin/sh\n"
