"""The driver contract on the other layouts of control groups than this host's own, in mount namespaces of their own.

Where the host mounts version 1 and version 2 side by side, a namespace can show only one of them: then containers run on pure
version 2 (with what controllers are left there) and on pure version 1, which is also where an old crun works.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from insula.host import cgroups

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[2]
ONLY_V2 = "umount -R -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup"
# crun makes folders in a `unified` that is no control group; there they vanish with the namespace.
ONLY_V1 = "umount /sys/fs/cgroup/unified && mount -t tmpfs none /sys/fs/cgroup/unified"


@pytest.mark.parametrize("layout", [ONLY_V1, ONLY_V2], ids=["v1", "v2"])
async def test_the_contract_holds(layout: str, tmp_path: Path) -> None:
    if not cgroups.detect().hybrid:
        pytest.skip("this host has one layout only")
    tests = f"{sys.executable} -m pytest -q -n0 -p no:cacheprovider --basetemp={tmp_path}/inner"
    done = await asyncio.to_thread(
        subprocess.run,
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            f"{layout} && exec {tests} tests/contract/test_driver_contract.py -k oci",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
