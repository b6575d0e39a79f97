"""The README's examples run as they stand, against a real Insula of their own."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"
MARKED = re.compile(r"<!-- test: (\w+) -->\n```sh\n(.*?)```", re.DOTALL)
EXAMPLES = dict(MARKED.findall((ROOT / "README.md").read_text()))


@pytest.fixture(scope="module")
def insula(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An Insula below a root of its own, and the environment in which its commands are the first on the path."""
    root = tmp_path_factory.mktemp("readme")
    env = {**os.environ, "INSULA_ROOT": str(root), "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(root)}
    env["DOCKER_HOST"] = f"unix://{root}/run/docker.sock"
    subprocess.run([BIN / "insula", "up", "--detach"], env=env, check=True, timeout=90, stdout=subprocess.DEVNULL)
    try:
        subprocess.run([BIN / "insula", "image", "demo"], env=env, check=True, timeout=170, stdout=subprocess.DEVNULL)
        yield env
    finally:
        subprocess.run([BIN / "insula", "down", "--all"], env=env, check=True, timeout=90, stdout=subprocess.DEVNULL)


def _local(text: str, env: dict[str, str], port: int) -> str:
    """The example with the fixed points of the machine's own Insula replaced by those of the test's."""
    return text.replace("/run/insula/docker.sock", f"{env['INSULA_ROOT']}/run/docker.sock").replace("8088", str(port))


@pytest.mark.root
@pytest.mark.parametrize(
    "name", [n if n not in ("machine", "build") else pytest.param(n, marks=pytest.mark.vm) for n in EXAMPLES]
)
@pytest.mark.timeout(300)
def test_example_runs(name: str, insula: dict[str, str], tmp_path: Path, unused_tcp_port: int) -> None:
    script = "set -e\n" + _local(EXAMPLES[name], insula, unused_tcp_port)
    done = subprocess.run(["bash", "-c", script], env=insula, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def test_both_languages_show_the_same_commands() -> None:
    chinese = (ROOT / "README.zh-CN.md").read_text()
    for text in EXAMPLES.values():
        assert text in chinese
