"""The default seccomp profile and profiles that users bring."""

from __future__ import annotations

import json
from typing import Any

import pytest

from insula.drivers.oci.spec import DEFAULT_CAPABILITIES
from insula.errors import Invalid
from insula.host.seccomp import ALWAYS, default_profile, resolve_profile


def allowed(profile: dict[str, Any]) -> set[str]:
    """Names that are allowed whatever their arguments."""
    return {
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
        for name in rule["names"]
    }


def test_no_name_is_listed_twice() -> None:
    names = ALWAYS.split()
    assert sorted(names) == sorted(set(names))


def test_the_usual_container() -> None:
    profile = default_profile(DEFAULT_CAPABILITIES, "x86_64")
    names = allowed(profile)
    assert {"read", "execve", "chroot", "arch_prctl", "statx", "fork"} <= names
    assert not names & {
        "mount",
        "unshare",
        "setns",
        "bpf",
        "reboot",
        "init_module",
        "io_uring_setup",
        "clone",
        "keyctl",
    }
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]


def test_clone_may_not_make_namespaces_and_clone3_says_it_is_unknown() -> None:
    rules = default_profile((), "x86_64")["syscalls"]
    (clone,) = (rule for rule in rules if rule["names"] == ["clone"])
    assert clone["args"] == [{"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    (clone3,) = (rule for rule in rules if rule["names"] == ["clone3"])
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


@pytest.mark.parametrize(
    ("capability", "opens"),
    [("CAP_SYS_ADMIN", "mount"), ("CAP_SYS_ADMIN", "clone3"), ("CAP_SYS_MODULE", "init_module"), ("CAP_BPF", "bpf")],
)
def test_a_capability_opens_its_calls(capability: str, opens: str) -> None:
    assert opens in allowed(default_profile((capability,), "x86_64"))
    assert opens not in allowed(default_profile((), "x86_64"))


def test_architectures() -> None:
    arm = default_profile((), "aarch64")
    assert arm["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert "arch_prctl" not in allowed(arm)
    assert "cacheflush" in allowed(arm)
    assert "architectures" not in default_profile((), "riscv64")


DOCKERS_FORM = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "x", "includes": {}, "excludes": {}},
        {"name": "write", "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["arm_thing"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"names": ["not_on_amd64"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
    ],
}


def test_a_profile_in_dockers_form_is_resolved() -> None:
    text = json.dumps(DOCKERS_FORM)
    plain = resolve_profile(text, (), "x86_64")
    assert [rule["names"] for rule in plain["syscalls"]] == [["read"], ["write"], ["clone3"]]
    assert plain["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert plain["syscalls"][0] == {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
    admin = resolve_profile(text, ("CAP_SYS_ADMIN",), "x86_64")
    assert [rule["names"] for rule in admin["syscalls"]] == [["read"], ["write"], ["mount"]]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"defaultAction": 1}', '{"defaultAction": "X", "syscalls": [{"names": []}]}']
)
def test_what_is_no_profile_is_invalid(text: str) -> None:
    with pytest.raises(Invalid):
        resolve_profile(text, (), "x86_64")
