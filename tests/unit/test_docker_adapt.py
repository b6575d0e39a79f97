"""The envelope against what a host can limit: refused, taken, or dropped with a warning."""

from __future__ import annotations

import os
from typing import Any

import pytest

from insula.api.docker.containers_adapt import adapt
from insula.api.docker.containers_limits import resources_of
from insula.api.docker.shape import shape
from insula.api.docker.words import HostWords
from insula.errors import Invalid
from insula.host.limits import Limits, numbers
from insula.model.instance import BlockLimit, Resources

NOTHING = Limits(**{name: False for name in Limits.__struct_fields__ if name not in ("cpus", "mems")})
HERE = Limits(cpus="0-1", mems="0")
MIB = 1 << 20


def adapted(limits: Limits = HERE, *, update: bool = False, **fields: Any) -> tuple[Resources, list[str]]:
    words, warnings = adapt(shape(fields, HostWords), limits, update=update)
    return resources_of(words), warnings


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"Memory": 5}, "Minimum memory limit allowed is 6MB"),
        ({"Memory": -1}, "Minimum memory limit allowed is 6MB"),
        ({"Memory": 10 * MIB, "MemorySwap": 7 * MIB}, "Minimum memoryswap limit should be larger than memory limit"),
        ({"MemorySwap": 7 * MIB}, "You should always set the Memory limit when using Memoryswap limit"),
        ({"MemorySwappiness": 101}, "Invalid value: 101, valid memory swappiness range is 0-100"),
        ({"MemoryReservation": 5}, "Minimum memory reservation allowed is 6MB"),
        ({"Memory": 10 * MIB, "MemoryReservation": 11 * MIB}, "less than memory reservation limit, see usage"),
        ({"NanoCpus": 5, "CpuQuota": 5}, "Conflicting options: Nano CPUs and CPU Quota cannot both be set"),
        ({"NanoCpus": 5, "CpuPeriod": 5}, "Conflicting options: Nano CPUs and CPU Period cannot both be set"),
        ({"NanoCpus": 10**15}, "range of CPUs is from 0.01 to "),
        ({"NanoCpus": -1}, "range of CPUs is from 0.01 to "),
        ({"CpuShares": -1}, "invalid CPU shares (-1): value must be a positive integer"),
        ({"CpuPeriod": 5}, "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"),
        ({"CpuQuota": 5}, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        ({"CpuRealtimePeriod": 5, "CpuRealtimeRuntime": 6}, "runtime cannot be higher than cpu real-time period"),
        ({"CpusetCpus": "z"}, "Invalid value z for cpuset cpus"),
        ({"CpusetCpus": "1-0"}, "Invalid value 1-0 for cpuset cpus"),
        ({"CpusetCpus": "0-7"}, "Requested CPUs are not available - requested 0-7, available: 0-1"),
        ({"CpusetMems": "1"}, "Requested memory nodes are not available - requested 1, available: 0"),
        ({"BlkioWeight": 5}, "Range of blkio weight is from 10 to 1000"),
    ],
)
def test_refusals(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Invalid) as raised:
        adapted(**fields)
    assert sentence in raised.value.message


def test_what_is_taken() -> None:
    device = [{"Path": "/dev/x", "Rate": 7}]
    limits, warnings = adapted(
        MemorySwappiness=0, PidsLimit=-1, CpuShares=1, CpuQuota=-1, CpusetCpus="0,1", CpuRealtimeRuntime=9,
        BlkioWeightDevice=[{"Path": "/dev/x", "Weight": 11}], BlkioDeviceReadBps=device, BlkioDeviceWriteBps=device,
        BlkioDeviceReadIOps=device, BlkioDeviceWriteIOps=device,
    )  # fmt: skip
    each = (BlockLimit(path="/dev/x", value=7),)
    assert warnings == []
    assert limits == Resources(
        memory_swappiness=0, cpu_shares=1, cpu_quota_us=-1, cpuset_cpus="0,1", cpu_rt_runtime_us=9,
        blkio_weight_devices=(BlockLimit(path="/dev/x", value=11),), read_bps=each, write_bps=each, read_iops=each,
        write_iops=each,
    )  # fmt: skip
    assert adapted(MemorySwappiness=-1)[0] == Resources()
    assert adapted(Memory=10 * MIB)[0].memory_swap_bytes == 20 * MIB
    whole, _ = adapted(NanoCpus=(os.cpu_count() or 1) * 10**9)
    assert whole.cpu_quota_us == (os.cpu_count() or 1) * 100_000
    assert adapted(update=True, PidsLimit=0)[0].pids_limit == -1
    assert adapted(update=True, MemorySwap=7 * MIB)[0].memory_swap_bytes == 7 * MIB


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"Memory": 10 * MIB}, "memory limit capabilities or the cgroup is not mounted. Limitation discarded."),
        ({"MemorySwappiness": 3}, "memory swappiness capabilities or the cgroup is not mounted. Memory swappiness"),
        ({"MemoryReservation": 10 * MIB}, "memory soft limit capabilities"),
        ({"OomKillDisable": True}, "Your kernel does not support OomKillDisable. OomKillDisable discarded."),
        ({"PidsLimit": 3}, "PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded."),
        ({"CpuShares": 3}, "CPU shares or the cgroup is not mounted. Shares discarded."),
        ({"CpuQuota": 3000}, "CPU CFS scheduler. CPU period/quota discarded."),
        ({"CpusetCpus": "0"}, "cpuset or the cgroup is not mounted. Cpuset discarded."),
        ({"BlkioWeight": 3}, "Block I/O weight or the cgroup is not mounted. Weight discarded."),
        ({"BlkioWeightDevice": [{"Path": "/x"}]}, "Block I/O weight_device or the cgroup is not mounted."),
        ({"BlkioDeviceReadBps": [{"Path": "/x"}]}, "BPS Block I/O read limit or the cgroup is not mounted."),
        ({"BlkioDeviceWriteIOps": [{"Path": "/x"}]}, "IOPS Block write limit or the cgroup is not mounted."),
        ({"KernelMemory": 10 * MIB}, "Specifying a kernel memory limit is deprecated"),
    ],
)
def test_what_this_kernel_cannot_is_dropped_with_a_warning(fields: dict[str, Any], warning: str) -> None:
    limits, warnings = adapted(NOTHING, **fields)
    assert len(warnings) == 1 and warning in warnings[0]
    assert limits in (Resources(), Resources(memory_swap_bytes=-1))


def test_warnings_beside_what_is_taken() -> None:
    limits, warnings = adapted(OomKillDisable=True)
    assert limits.oom_kill_disable and "no memory limit is set" in warnings[0]
    no_swap = Limits(swap=False)
    limits, warnings = adapted(no_swap, Memory=10 * MIB)
    assert limits.memory_swap_bytes == -1 and "Memory limited without swap." in warnings[0]


def test_numbers_of_a_cpuset() -> None:
    assert numbers("0-2,7") == {0, 1, 2, 7} and numbers("") == set()
    assert [numbers(text) for text in ("a", "2-1", "0-", "99999", "0,,1")] == [None] * 5
