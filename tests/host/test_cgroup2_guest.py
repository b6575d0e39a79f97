"""Containers and control groups on pure cgroup version 2, with runc and with crun, in a machine that has nothing else.

Modern distributions mount only version 2, and a runtime probes for more than a mount namespace can pretend to: so a guest
kernel of its own runs the same tests that run on this host.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from host import cgroup2_guest_support as guests
from host.vm_support import demo_machine
from insula.images.machine import MachineFiles

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.timeout(420)]
DEADLINE_S = 360  # for an emulated machine on a busy host; it needs about 40 s of one CPU
PYTEST = "python3 -m pytest -q -rA --color=no --noconftest -p no:cacheprovider --timeout=300"

# What depends on the layout of control groups. The rest of the driver's tests does not, and emulation makes it slow.
KERNEL = "tests/host/test_cgroups_kernel.py"
CONTRACT = "tests/contract/test_driver_contract.py tests/contract/test_driver_oci.py"
CHOSEN = {
    "runc": "test_cgroups_kernel or a_life or delete_is_repeatable or pause or stats or memory_is or update or pids_are"
    " or privileged or dead_conmon or left_over or exec_has",
    "crun": "a_life or pause_and_resume or stats or memory_is or update or pids_are or left_over or exec_has",
}


@pytest.fixture(scope="module")
def machine() -> MachineFiles:
    return demo_machine()


@pytest.mark.parametrize("runtime", ["runc", "crun"])
async def test_the_driver_holds_on_version_2(runtime: str, machine: MachineFiles, tmp_path: Path) -> None:
    if not shutil.which(runtime):
        pytest.skip(f"{runtime} is not installed")
    commands = f"""
        export INSULA_TEST_RUNTIME={runtime}
        test "$(grep -c cgroup /proc/mounts)" = 1 || exit 9
        {PYTEST} -k "not microvm and ({CHOSEN[runtime]})" {KERNEL} {CONTRACT}
        code=$?
        find /sys/fs/cgroup -mindepth 1 -type d | sed 's/^/left: /'
        (exit $code)"""
    code, said = await guests.run(commands, machine, tmp_path, deadline_s=DEADLINE_S)
    assert code == 0, said
    assert int(re.findall(r"(\d+) passed", said)[-1]) >= 8, said
    assert "left: " not in said, said
