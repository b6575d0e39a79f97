"""Dockerfiles, taken apart: the shapes that are easy to get wrong, and those that are wrong."""

from __future__ import annotations

import contextlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.images.dockerfile.configuring import configure, ports_of
from insula.images.dockerfile.instructions import Arg, Command, Copy, Healthcheck, Onbuild, Pairs, Run, Words, parse
from insula.images.dockerfile.lines import DockerfileFault, read


def steps(text: str) -> list[object]:
    return [step.what for step in parse("FROM scratch\n" + text).stages[0].steps]


def one(text: str) -> object:
    (found,) = steps(text)
    return found


# --- lines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("FROM a\n\n  run b", [("FROM", "a"), ("RUN", "b")]),
        ("# c\nFROM a", [("FROM", "a")]),
        ("RUN a \\\n b", [("RUN", "a  b")]),
        ("RUN a \\  \n b", [("RUN", "a  b")]),
        ("RUN a\\\\\nRUN b", [("RUN", "a\\\\"), ("RUN", "b")]),
        ("RUN a \\\n# no\n   # no\n b", [("RUN", "a  b")]),
        ("RUN a \\\n\n b", [("RUN", "a  b")]),
        ("RUN a \\", [("RUN", "a")]),
        ("\ufeffFROM a", [("FROM", "a")]),
        ("FROM a\r\nRUN b \\\r\n c\r\n", [("FROM", "a"), ("RUN", "b  c")]),
        ("# escape=`\nRUN a `\n b\\", [("RUN", "a  b\\")]),
        ("#syntax=docker/dockerfile:1\n# escape = `\nRUN a `\nb", [("RUN", "a b")]),
        ("#!/usr/bin/x\nFROM a", [("FROM", "a")]),
        ("# hello\n# escape=`\nRUN a \\\nb", [("RUN", "a b")]),
    ],
)
def test_lines(text: str, lines: list[tuple[str, str]]) -> None:
    assert [(each.word, each.rest) for each in read(text).lines] == lines


def test_positions_and_comments() -> None:
    text = read("FROM a\n# what it does\nRUN x \\\n  y\n\nRUN <<E\n1\n2\nE\n")
    assert [(each.start, each.end) for each in text.lines] == [(1, 1), (3, 4), (6, 9)]
    assert text.lines[1].comments == ("what it does",)
    assert read("RUN a \\\n\n b\n").empty_continuations == (2,)


def test_here_documents() -> None:
    (run,) = read("RUN <<A cat <<-'B' ; x\none\n\\\nA\n\ttwo\n\tB\n").lines
    assert [(each.name, each.content, each.data, each.expand, each.chomp) for each in run.heredocs] == [
        ("A", "one\n\\\n", "one\n\\\n", True, False),
        ("B", "\ttwo\n", "two\n", False, True),
    ]
    assert read("RUN<<E\nx\nE").lines[0].heredocs[0].content == "x\n"
    assert read("CMD <<E\n").lines[0].heredocs == ()
    assert read('RUN ["a", "<<E"]\n').lines[0].heredocs == ()
    assert read("RUN a < <(b) 2>&1 <<<x\n").lines[0].heredocs == ()


def test_flags() -> None:
    (line,) = read('COPY --from=a --chown="b c" -- --x y').lines
    assert (line.flags, line.rest) == (("--from=a", "--chown=b c"), "--x y")


# --- instructions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("RUN a b", Run(words=("a b",), shell=True)),
        ('RUN ["a", "b c"]', Run(words=("a", "b c"), shell=False)),
        ("RUN ['a']", Run(words=("['a']",), shell=True)),
        ('RUN --mount=type=cache,target=/c --mount=target=/d --network=none a',
         Run(words=("a",), shell=True, mounts=("type=cache,target=/c", "target=/d"), network="none")),
        ("CMD a", Command(word="CMD", words=("a",), shell=True)),
        ("CMD []", Command(word="CMD", words=(), shell=False)),
        ("CMD", Command(word="CMD", words=(), shell=False)),
        ('ENTRYPOINT ["a"]', Command(word="ENTRYPOINT", words=("a",), shell=False)),
        ("ENV a=b c='d e' f=g\\ h", Pairs(word="ENV", pairs=(("a", "b"), ("c", "'d e'"), ("f", "g\\ h")))),
        ("ENV a b c", Pairs(word="ENV", pairs=(("a", "b c"),))),
        ('ENV a="b\\\nc"', Pairs(word="ENV", pairs=(("a", '"bc"'),))),
        ("LABEL a.b=c", Pairs(word="LABEL", pairs=(("a.b", "c"),))),
        ("ARG a b=c d=", Arg(pairs=(("a", None), ("b", "c"), ("d", "")))),
        ("COPY a b /c/", Copy(sources=("a", "b"), target="/c/")),
        ('COPY ["a b", "c"]', Copy(sources=("a b",), target="c")),
        ("COPY --link --chmod=755 --parents --exclude=*.a --exclude=b x y",
         Copy(sources=("x",), target="y", link=True, mode="755", parents=True, excludes=("*.a", "b"))),
        ("COPY --link=false x y", Copy(sources=("x",), target="y")),
        ("ADD --keep-git-dir=true u v", Copy(sources=("u",), target="v", add=True, keep_git_dir=True)),
        ("EXPOSE 80 443/tcp", Words(word="EXPOSE", words=("80", "443/tcp"))),
        ('VOLUME ["/a", " /b "]', Words(word="VOLUME", words=("/a", "/b"))),
        ("VOLUME /a /b", Words(word="VOLUME", words=("/a", "/b"))),
        ("WORKDIR /a b", Words(word="WORKDIR", words=("/a b",))),
        ('SHELL ["a", "-c"]', Words(word="SHELL", words=("a", "-c"))),
        ("ONBUILD run x", Onbuild(trigger="run x")),
        ("HEALTHCHECK NONE", Healthcheck(test=("NONE",))),
        ("HEALTHCHECK --interval=1m30s --retries=3 cmd a b",
         Healthcheck(test=("CMD-SHELL", "a b"), interval=90 * 10**9, retries=3)),
        ('HEALTHCHECK --timeout=1.5s CMD ["a"]', Healthcheck(test=("CMD", "a"), timeout=1_500_000_000)),
    ],
)  # fmt: skip
def test_instructions(text: str, what: object) -> None:
    assert one(text) == what


def test_copy_of_here_documents() -> None:
    found = one('COPY <<a x <<"b" /t/\n1\na\n2\nb\n')
    assert isinstance(found, Copy)
    assert (found.sources, found.target, [each.name for each in found.contents]) == (("x",), "/t/", ["a", "b"])


def test_stages() -> None:
    found = parse("ARG v=1\nFROM a:$v AS Build\nRUN x\nFROM --platform=linux/arm64 build\nFROM scratch as last\n")
    assert [(each.name, each.origin.base, each.origin.platform) for each in found.stages] == [
        ("build", "a:$v", ""), ("1", "build", "linux/arm64"), ("last", "scratch", ""),
    ]  # fmt: skip
    assert len(found.globals) == 1
    assert found.stage("BUILD") is found.stages[0] and found.stage("1") is found.stages[1]
    assert found.stage("build", before=0) is None and found.stage("7") is None and found.stage("9" * 50) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "file with no instructions"),
        ("# only\n", "file with no instructions"),
        ("RUN x", "line 1: no build stage in current context"),
        ("ARG a", "no build stage in current context"),
        ("FROM", "line 1: FROM requires either one or three arguments"),
        ("FROM a b", "FROM requires either one or three arguments"),
        ("FROM a AS 1b", "invalid name for build stage"),
        ("FROM a AS scratch", "reserved"),
        ("FROM a\nFOO", "line 2: unknown instruction: FOO"),
        ("FROM a\nRUNN x", "did you mean RUN?"),
        ("FROM a\nRUN", "RUN requires at least one argument"),
        ("FROM a\nRUN []", "RUN requires at least one argument"),
        ('FROM a\nRUN ["a", 1]', "arrays must be comprised of strings only"),
        ("FROM a\nRUN --frob x", "unknown flag: --frob"),
        ("FROM a\nCOPY --fro=x a b", "did you mean from?"),
        ("FROM a\nCOPY --from a b", "missing a value on flag: from"),
        ("FROM a\nCOPY --from=a --from=b a b", "duplicate flag specified: from"),
        ("FROM a\nCOPY --link=maybe a b", "expecting boolean value for flag link, not: maybe"),
        ("FROM a\nENV --x=1 a=b", "unknown flag: --x"),
        ("FROM a\nCOPY a", "Destination could not be determined"),
        ("FROM a\nCOPY", "COPY requires at least one argument"),
        ("FROM a\nENV a", "ENV must have two arguments"),
        ("FROM a\nENV a=b c", 'can\'t find = in "c"'),
        ("FROM a\nENV =b", "names can not be blank"),
        ("FROM a\nLABEL", "LABEL requires at least one argument"),
        ("FROM a\nARG =x", "ARG names can not be blank"),
        ("FROM a\nUSER", "USER requires exactly one argument"),
        ("FROM a\nSHELL x", "SHELL requires the arguments to be in JSON form"),
        ("FROM a\nVOLUME []", "VOLUME requires at least one argument"),
        ('FROM a\nVOLUME [""]', "can not be an empty string"),
        ("FROM a\nONBUILD ONBUILD RUN x", "Chaining ONBUILD"),
        ("FROM a\nONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("FROM a\nONBUILD FOO", "unknown instruction: FOO"),
        ("FROM a\nHEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("FROM a\nHEALTHCHECK NONE x", "takes no arguments"),
        ("FROM a\nHEALTHCHECK FOO", 'Unknown type "FOO" in HEALTHCHECK (try CMD)'),
        ("FROM a\nHEALTHCHECK --interval=1us CMD x", "cannot be less than 1ms"),
        ("FROM a\nHEALTHCHECK --interval=x CMD x", "invalid duration"),
        ("FROM a\nHEALTHCHECK --retries=-1 CMD x", "at least 0"),
        ("FROM a\nRUN <<E\nx\n", "line 2: unterminated heredoc"),
        ("# escape=x\nFROM a", "invalid escape token 'x'"),
        ("# escape=`\n# escape=`\nFROM a", "only one escape parser directive"),
    ],
)
def test_refusals(text: str, sentence: str) -> None:
    with pytest.raises(DockerfileFault, match=re.escape(sentence)):
        parse(text)


@given(st.text(alphabet="FROMUNaA \\\n\t#\"'<-E=`[]{}$", max_size=80))
def test_never_fails_otherwise(text: str) -> None:
    with contextlib.suppress(DockerfileFault):
        parse("FROM a\n" + text)


@pytest.mark.parametrize(
    "text",
    [
        "FROM a\nRUN " + "x" * 2_000_000,
        "FROM a\nRUN x\\\n" + "y\\\n" * 600_000,
        "FROM a\n" + "RUN x\n" * 100_001,
        "FROM a\nRUN <<E\n" + "x" * 2_000_000 + "\nE\n",
        "FROM a\nRUN x \\\n" + " # c\n" * 300_000,
        "FROM a\nRUN " + "[" * 200_000,
        "FROM a\nENV " + "a=b " * 200_000,
        "FROM a\nCOPY " + "<<E " * 100_000 + "/x\n",
    ],
)
def test_hostile_files_end_soon(text: str) -> None:
    began = time.monotonic()
    with contextlib.suppress(DockerfileFault):
        parse(text)
    assert time.monotonic() - began < 10


# --- configurations -----------------------------------------------------------------------------------------------


def config_after(*lines: str, base: dict[str, object] | None = None) -> dict[str, object]:
    config, commanded = dict(base or {}), False
    for line in lines:
        what = one(line)
        variables = dict(each.partition("=")[::2] for each in config.get("Env") or [])  # type: ignore[attr-defined]
        config = configure(config, what, variables, keeps_command=commanded).config  # type: ignore[arg-type]
        commanded = commanded or line.startswith("CMD")
    return config


def test_configurations() -> None:
    assert config_after("ENV a=1 b=$a", "ENV a=2 c=$a") == {"Env": ["a=2", "b=", "c=1"]}
    assert config_after("WORKDIR /a", "WORKDIR b/../c", "WORKDIR ./d") == {"WorkingDir": "/a/c/d"}
    assert config_after('SHELL ["/x", "-y"]', "CMD z") == {"Shell": ["/x", "-y"], "Cmd": ["/x", "-y", "z"]}
    assert config_after('ENTRYPOINT ["e"]', base={"Cmd": ["old"]}) == {"Entrypoint": ["e"]}
    assert config_after('CMD ["c"]', 'ENTRYPOINT ["e"]') == {"Cmd": ["c"], "Entrypoint": ["e"]}
    assert config_after("ENV p='80 90-91/UDP'", "EXPOSE $p")["ExposedPorts"] == {
        "80/tcp": {},
        "90/udp": {},
        "91/udp": {},
    }
    assert config_after("LABEL a=1", "LABEL b=2 a=3") == {"Labels": {"a": "3", "b": "2"}}
    assert config_after("STOPSIGNAL SIGRTMIN+3") == {"StopSignal": "SIGRTMIN+3"}


@pytest.mark.parametrize("text", ["x", "0-99999", "9-3", "80/foo", "-1", "80:80", "1.2.3.4:80"])
def test_wrong_ports(text: str) -> None:
    with pytest.raises(Exception, match="invalid"):
        ports_of(text)


@pytest.mark.parametrize("line", ["STOPSIGNAL foo", "STOPSIGNAL 99", "WORKDIR $nothing", "VOLUME $nothing", "ENV $x=1"])
def test_wrong_values(line: str) -> None:
    with pytest.raises(Exception, match=r"invalid signal|normalize nothing|empty string|blank"):
        config_after(line)
