"""What `insula build` sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.cli.commands.build import context_files


@pytest.mark.parametrize(
    ("ignore", "sent"),
    [
        ("", [".dockerignore", "Dockerfile", "a", "sub", "sub/b", "sub/deep", "sub/deep/c"]),
        ("sub\nDockerfile", [".dockerignore", "Dockerfile", "a"]),
        ("*\n!sub/deep", [".dockerignore", "Dockerfile", "sub/deep", "sub/deep/c"]),
        ("**/b\n.dockerignore", [".dockerignore", "Dockerfile", "a", "sub", "sub/deep", "sub/deep/c"]),
    ],
)
def test_files_of_a_context(tmp_path: Path, ignore: str, sent: list[str]) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    for name in ("Dockerfile", "a", "sub/b", "sub/deep/c"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".dockerignore").write_text(ignore)
    assert sorted(context_files(tmp_path, "Dockerfile")) == sent


def test_a_dockerfile_has_its_own_ignores(tmp_path: Path) -> None:
    for name in ("D", "a", "b"):
        (tmp_path / name).write_text("x")
    (tmp_path / "D.dockerignore").write_text("a")
    (tmp_path / ".dockerignore").write_text("b")
    assert sorted(context_files(tmp_path, "D")) == [".dockerignore", "D", "D.dockerignore", "b"]
