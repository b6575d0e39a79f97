"""The benchmarks' own arithmetic, readers and argument lists: what they say must be true before it is worth anything."""

from __future__ import annotations

import tarfile
from pathlib import Path

import click
import msgspec
import pytest

from bench import processes, report, suite
from bench.__main__ import pick
from bench.benchmark import AT_LEAST, AT_MOST, Budget, Row, percentile, summary
from bench.loads import percentiles
from bench.loads.wire import Reader, request
from bench.suite import image_load, vm_start


def test_medians_and_percentiles() -> None:
    assert summary([3.0, 1.0, 2.0]).p50 == 2.0
    assert summary([1.0, 2.0, 3.0, 10.0]).p50 == 2.5
    assert percentile([float(n) for n in range(1, 11)], 0.9) == 9.0
    assert (summary([5.0]).p50, summary([5.0]).p90, summary([5.0]).count) == (5.0, 5.0, 1)
    with pytest.raises(ValueError, match="at least one"):
        summary([])


@pytest.mark.parametrize(
    ("budget", "ours", "peers", "met"),
    [
        (Budget(AT_MOST, 150), 149.0, None, True),
        (Budget(AT_MOST, 0), 0.0, None, True),
        (Budget(AT_LEAST, 2000), 1999.0, None, False),
        (Budget(AT_MOST, 0.35, times=True), 34.0, 100.0, True),
        (Budget(AT_LEAST, 3, times=True), 29.0, 10.0, False),
        (Budget(AT_LEAST, 3, times=True), 29.0, None, None),
    ],
)
def test_budgets(budget: Budget, ours: float, peers: float | None, met: bool | None) -> None:
    assert budget.met(ours, peers) is met


def test_a_row_without_its_peer_is_neither_met_nor_missed() -> None:
    row = Row(what="x", unit="ms", insula=summary([1.0]), budgets=(Budget(AT_MOST, 1, times=True),), absent="no peer")
    assert (row.met, row.ratio) == (None, None)
    both = msgspec.structs.replace(row, budgets=(*row.budgets, Budget(AT_MOST, 0.5)))
    assert both.met is False  # a limit of its own is missed, whatever the peer would have said


def test_every_file_of_the_suite_is_a_benchmark_with_a_name_of_its_own() -> None:
    found = suite.load()
    files = [path for path in Path(suite.__file__).parent.glob("*.py") if path.name != "__init__.py"]
    assert len({benchmark.name for benchmark in found}) == len(found) == len(files)
    assert [one.name for one in pick(found, ("idle", "docker-run"))] == ["idle", "docker-run"]
    with pytest.raises(click.UsageError, match="no benchmark nonsense"):
        pick(found, ("nonsense",))


def test_the_document_has_the_verdicts() -> None:
    row = Row(
        what="x", unit="ms", insula=summary([1.0, 3.0]), peer=summary([4.0]), budgets=(Budget(AT_MOST, 1, times=True),)
    )
    document = report.document([report.Result("one", "about", 0.5, 1.0, [row])])
    told = document["results"][0]["rows"][0]
    assert (told["ratio"], told["met"], told["insula"]["p50"]) == (0.5, True, 2.0)
    assert report.spread(row.insula) == "2 / 3"


def test_reading_proc() -> None:
    assert processes.parse_cpu("7 (a b) c) S 1 7 7 0 -1 4194560 0 0 0 0 150 50 0 0 20 0") == 200 / processes.TICKS
    assert processes.parse_rollup("5-6 ---p [rollup]\nRss:  2 kB\nPss:  1 kB\n") == (1024, 2048)
    assert processes.parse_written("rchar: 9\nwrite_bytes: 8192\ncancelled_write_bytes: 4096\n") == 4096


def test_reading_answers_in_any_pieces() -> None:
    first = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    second = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    third = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    wire = first + second + third
    for size in (1, 2, 7, len(wire)):
        reader, found = Reader(), []
        for start in range(0, len(wire), size):
            found += reader.feed(wire[start : start + size])
        assert [status for status, _ in found] == [200, 201, 404]
        assert found[0] == (200, 5)
    with pytest.raises(ValueError, match="not an HTTP answer"):
        Reader().feed(b"SSH-2.0-x\r\n\r\n")


def test_requests_as_bytes() -> None:
    asked = request("PATCH", "/x", "h", {"Authorization": "Bearer t"}, b"{}")
    assert asked.startswith(b"PATCH /x HTTP/1.1\r\nHost: h\r\n")
    assert asked.endswith(b"Content-Type: application/merge-patch+json\r\nContent-Length: 2\r\n\r\n{}")


def test_a_thousand_values_stand_for_many() -> None:
    assert percentiles([2.0, 1.0]) == [1.0, 2.0]
    kept = percentiles([float(n) for n in range(10_000)])
    assert (len(kept), kept[0], kept[-1]) == (1000, 0.0, 9999.0)


def test_qemu_alone_gets_the_same_machine() -> None:
    argv = [
        *("qemu", "-S", "-pidfile", "/r/data/m/qemu.pid", "-m", "64M"),
        *("-chardev", "socket,id=monitor0,fd=36,server=on,wait=off"),
        *("-chardev", "socket,id=serial0,fd=37,server=on,wait=off,logfile=/r/log,logappend=on"),
        *("-vnc", "unix:/r/vm/1/vnc", "-netdev", "tap,id=net0,ifname=i1,script=no"),
    ]
    made = vm_start.raw_arguments(argv, Path("/s"), (3, 4))
    assert made[:5] == ["qemu", "-pidfile", "/s/qemu.pid", "-m", "64M"]
    assert "socket,id=monitor0,fd=3,server=on,wait=off" in made
    assert "socket,id=serial0,fd=4,server=on,wait=off,logfile=/s/log,logappend=on" in made
    assert made[-3] == "unix:/s/vnc"
    assert made[-1].startswith("tap,id=net0,ifname=ib")


def test_the_smallest_kernel_has_the_header_of_the_boot_protocol() -> None:
    made = vm_start.kernel()
    assert made[0x1FE:0x200] == b"\x55\xaa"
    assert made[0x202:0x206] == b"HdrS"
    assert len(made) == (1 + made[0x1F1] + 1) * 512


def test_the_archive_is_one_that_docker_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_load, "FILES", 3)
    image_load.write_archive(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        told = msgspec.json.decode(manifest.read())[0]
        assert told["RepoTags"] == [image_load.NAME]
        assert set(told["Layers"]) < set(archive.getnames())
