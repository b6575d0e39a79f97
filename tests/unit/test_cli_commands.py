"""The command line without a daemon: help, faults, output, the lock, the unit, what is registered."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from insula import drivers
from insula.cli import daemon, explain, main, output, terminal, unit
from insula.cli.commands import logs
from insula.cli.daemon import AlreadyRuns, Serving
from insula.cli.errors import friendly, sentence
from insula.cli.paths import paths_of
from insula.cli.settings import HELP, Settings, rows
from insula.errors import HostFault, Invalid, NotFound, Unavailable

DOCS = Path(__file__).parents[2] / "docs"


def run(*words: str, root: Path | None = None) -> click.testing.Result:
    where = ["--root", str(root)] if root else []
    return CliRunner().invoke(main.main, [*where, *words])


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name in main.names():
        command = main.main.get_command(click.Context(main.main), name)
        assert command is not None
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, sub) for sub in command.commands]
    return found


@pytest.mark.parametrize("words", every_command(), ids="-".join)
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    done = run(*words, "--help")
    assert done.exit_code == 0, done.output
    assert "Usage:" in done.output


@pytest.mark.parametrize("name", main.names())
def test_every_command_has_its_line_and_its_page(name: str) -> None:
    assert len(main.summary(name)) > 10
    assert f"insula {name}" in (DOCS / "cli.md").read_text()


def test_the_overview_imports_no_command() -> None:
    code = "import sys; from insula.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in sys.modules if name.startswith('insula.cli.commands.') or name == 'aiohttp'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_completion() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_INSULA_COMPLETE" in run("completion", shell).output
    done = CliRunner().invoke(
        main.main,
        prog_name="insula",
        env={"_INSULA_COMPLETE": "bash_complete", "COMP_WORDS": "insula vm con", "COMP_CWORD": "2"},
    )
    assert done.output.split() == ["plain,console"]


def test_names_are_completed_only_where_a_daemon_answers(tmp_path: Path) -> None:
    env = {"_INSULA_COMPLETE": "bash_complete", "COMP_WORDS": f"insula --root {tmp_path} vm show ", "COMP_CWORD": "5"}
    assert CliRunner().invoke(main.main, prog_name="insula", env=env).output.strip() == ""


@pytest.mark.parametrize(
    "words", [("status",), ("image", "list"), ("vm", "list"), ("vm", "console", "m"), ("demo",), ("vm", "create", "m")]
)
def test_without_a_daemon_every_command_says_how_to_start_one(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*words, root=tmp_path)
    assert done.exit_code == 1
    assert f"Insula does not run here (start it with: insula up --detach --root {tmp_path})" in done.output


def test_stopping_what_does_not_run(tmp_path: Path) -> None:
    assert run("down", root=tmp_path).output == "Insula does not run.\n"


def test_a_manifest_without_a_daemon(tmp_path: Path) -> None:
    done = run("vm", "create", "m", "--dry-run", "-o", "yaml", root=tmp_path)
    assert yaml.safe_load(done.output)["spec"]["template"]["spec"]["domain"]["firmware"]["kernelBoot"]
    other = run("vm", "create", "m", "--image", "x", "--dry-run", "-o", "json", root=tmp_path)
    assert json.loads(other.output)["spec"]["template"]["spec"]["volumes"][0]["containerDisk"]["image"] == "x"
    seed = tmp_path / "seed"
    seed.write_text("x" * 3000)
    both = run("vm", "create", "m", "--dry-run", "-o", "yaml", "--cloud-init", str(seed), root=tmp_path)
    assert [found["kind"] for found in yaml.safe_load_all(both.output)] == ["Secret", "VirtualMachine"]
    seed.write_bytes(b"\xff\xfe")
    wrong = run("vm", "create", "m", "--dry-run", "--cloud-init", str(seed), root=tmp_path)
    assert "is not a text" in wrong.output


@pytest.mark.parametrize(
    "words",
    [
        ("vm", "create", "m", "--kernel", "/k", "--disk"),
        ("vm", "create", "m", "--initrd", "/i"),
        ("vm", "create", "m", "--cpus", "0"),
        ("explain", "everything"),
        ("nonsense",),
    ],
)
def test_words_that_make_no_sense(words: tuple[str, ...], tmp_path: Path) -> None:
    assert run(*words, root=tmp_path).exit_code == 2


def test_sentences_of_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert sentence(NotFound("no", hint="look")) == "no (look)"
    assert sentence(HostFault("no", command="ls")) == "no\nthe command was: ls"
    assert sentence(ExceptionGroup("two", [NotFound("a"), OSError(2, "No such file", "/x")])) == "a; /x: No such file"
    assert "try again with sudo" in sentence(PermissionError(13, "Permission denied", "/x"))
    assert "INSULA_TRACE=1" in sentence(ZeroDivisionError("x"))
    with pytest.raises(SystemExit, match="1"), friendly():
        raise ZeroDivisionError("division")
    assert "ZeroDivisionError: division" in capsys.readouterr().err


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table([{"a": None, "b_c": True}, {"a": ["x", "y"], "b_c": "[red]"}], ("a", "b_c"))
    assert capsys.readouterr().out == "A    B C\n-    yes\nx,y  [red]\n"
    output.show([{"a": 1}], ("a",), "json")
    assert json.loads(capsys.readouterr().out) == [{"a": 1}]


def test_typing() -> None:
    assert terminal.until_escape(b"abc") == (b"abc", False)
    assert terminal.until_escape(b"ab\x1dc") == (b"ab", True)


async def test_keys_end_with_their_pipe_and_with_their_reader() -> None:
    reader, writer = os.pipe()
    try:
        typed = terminal.keys(reader)
        os.write(writer, b"abc")
        assert await anext(typed) == b"abc"
        await typed.aclose()
        os.write(writer, b"d")
        os.close(writer)
        assert [data async for data in terminal.keys(reader)] == [b"d"]
    finally:
        os.close(reader)


def test_the_lock(tmp_path: Path) -> None:
    paths = paths_of(str(tmp_path))
    assert daemon.serving(paths) is None
    if os.geteuid() != 0:
        pytest.skip("only root may take it")
    with daemon.locked(paths) as file:
        said = Serving(pid=1, version="1", api="https://long.example:6443", ready=False)
        daemon.write(file, said)
        assert daemon.serving(paths) == said
        with pytest.raises(AlreadyRuns):
            daemon.locked(paths)
        daemon.write(file, Serving(pid=1, version="1"))
        assert daemon.need_running(paths).ready
        daemon.write(file, None)
        assert paths.lock.read_bytes() == b"null\n"
    assert daemon.serving(paths) is None
    with pytest.raises(Unavailable, match="insula up --detach --root"):
        daemon.need_running(paths)


def test_a_root_that_is_too_long_for_sockets(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("asked after root")
    with pytest.raises(Invalid, match="at most 75 bytes"):
        daemon.locked(paths_of(str(tmp_path / ("x" * 80))))


def test_the_unit() -> None:
    assert (
        unit.text(paths_of(None), ["/opt/in sula/bin/insula"])
        == (Path(__file__).parent / "golden/insula.service").read_text()
    )
    second = unit.text(paths_of("/srv/100%"), ["insula"])
    assert "ExecStart=insula --root /srv/100%% up\n" in second
    assert f"Environment=INSULA_UNIT={paths_of('/srv/100%').unit.name}\n" in second
    assert run("install", "--print").output.startswith("[Unit]\n")


def test_where_the_log_is(tmp_path: Path) -> None:
    paths = paths_of(str(tmp_path))
    assert logs.command(paths, True, True, 5)[-5:] == ["-u", paths.unit.name, "-n", "5", "-f"]
    with pytest.raises(NotFound):
        logs.command(paths, False, False, 5)
    paths.log.parent.mkdir(parents=True)
    paths.log.write_text("x\n")
    assert logs.command(paths, False, True, 5) == ["tail", "-n", "5", "-F", str(paths.log)]


@pytest.mark.parametrize("topic", explain.TOPICS)
def test_explain(topic: str) -> None:
    chosen = explain.TOPICS[topic]
    found = chosen.rows(paths_of(None))
    assert found
    assert all(set(chosen.columns) <= set(row) for row in found)
    assert all(row.get("summary") != "" for row in found)
    assert topic in run("explain").output
    assert run("explain", topic, "-o", "json").exit_code == 0


def test_the_map_names_the_drivers_that_are_there() -> None:
    named = set(re.findall(r"`drivers/(\w+)`", (DOCS / "architecture.md").read_text()))
    assert named - {"driver"} == set(drivers.available())


def test_the_page_lists_every_setting_with_its_default() -> None:
    page = (DOCS / "cli.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page, flags=re.M))
    wanted = {row["name"]: f"`{json.dumps(row['default'])}`" for row in rows()}
    assert listed == wanted
    assert set(HELP) == set(Settings.__struct_fields__)


def test_output_survives_a_reader_that_leaves() -> None:
    done = subprocess.run(
        f"{sys.executable} -m insula.cli explain kinds | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert io.StringIO(done.stdout).readline().startswith("NAME")
