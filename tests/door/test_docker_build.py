"""`docker build` through the classic endpoint, by the unmodified client and by raw requests."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.door.docker_support import DOCKER, Daemon, running, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker client is not installed")]
CLASSIC = {"DOCKER_BUILDKIT": "0"}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


class Site:
    """A build context with a Dockerfile."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        self.put("a.txt", "A\n")
        self.put("sub/b.txt", "B\n")

    def put(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def build(self, dockerfile: str, *arguments: str, check: int = 0) -> str:
        """What the client shows."""
        self.put("Dockerfile", dockerfile)
        done = self.daemon.docker("build", *arguments, str(self.folder), check=check, env=CLASSIC)
        return (done.stdout + done.stderr).decode()

    def image(self, dockerfile: str, *arguments: str) -> str:
        """The id of the image."""
        self.put("Dockerfile", dockerfile)
        done = self.daemon.docker("build", "-q", *arguments, str(self.folder), env=CLASSIC)
        return done.stdout.decode().strip()

    def config(self, image: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.daemon.text("inspect", image, "--format", "{{json .Config}}"))
        return found

    def run(self, image: str, *command: str) -> str:
        return self.daemon.text("run", "--rm", image, *command)


@pytest.fixture
def site(daemon: Daemon, tmp_path: Path) -> Site:
    return Site(daemon, tmp_path)


def layers_of(daemon: Daemon, image: str) -> list[list[str]]:
    """The names in each layer, lowest first."""
    with tarfile.open(fileobj=io.BytesIO(daemon.docker("save", image).stdout)) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        found = []
        for layer in manifest["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as inner:
                found.append(sorted(inner.getnames()))
    return found


# --- instructions -------------------------------------------------------------------------------------------------


def test_what_the_client_shows(site: Site) -> None:
    name = site.daemon.name()
    text = "FROM busybox\nENV A=1\nRUN echo out; echo err >&2\nCOPY a.txt /\n"
    shown = site.build(text, "-t", name, "-t", f"{name}:two")
    for line in (
        "Step 1/4 : FROM busybox\n ---> ",
        "Step 2/4 : ENV A=1\n ---> ",
        "Step 3/4 : RUN echo out; echo err >&2\n ---> Running in ",
        "out\n",
        "\x1b[91merr\n\x1b[0m",
        " ---> Removed intermediate container ",
        f"Successfully tagged {name}:latest\n",
        f"Successfully tagged {name}:two\n",
    ):
        assert line in shown, shown
    image = site.daemon.text("images", "-q", "--no-trunc", name)
    again = site.build(text, "-t", name)
    assert again.count(" ---> Using cache") == 3
    assert f"Successfully built {image.removeprefix('sha256:')[:12]}\n" in again
    assert site.run(name, "cat", "/a.txt") == "A"


def test_configuration(site: Site) -> None:
    image = site.image(
        "FROM busybox\nARG V=1\nENV A=$V B='2 3'\nENV C $A and\nWORKDIR /w\nWORKDIR x\nUSER 5:6\nEXPOSE 80 90-91/udp\n"
        'VOLUME /v\nLABEL a=$A "b c"=d\nSTOPSIGNAL SIGINT\nHEALTHCHECK --interval=3s CMD true\nONBUILD RUN x\n'
        'SHELL ["/bin/sh", "-ec"]\nCMD echo hi\n',
        "--label", "given=1",
    )  # fmt: skip
    config = site.config(image)
    assert config["Env"][1:] == ["A=1", "B=2 3", "C=1 and"] and config["Env"][0].startswith("PATH=")
    assert config["Labels"] == {"a": "1", "b c": "d", "given": "1"}
    assert config["ExposedPorts"] == {"80/tcp": {}, "90/udp": {}, "91/udp": {}}
    assert (config["WorkingDir"], config["User"], config["StopSignal"]) == ("/w/x", "5:6", "SIGINT")
    assert config["Volumes"] == {"/v": {}} and config["OnBuild"] == ["RUN x"]
    assert config["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Interval": 3_000_000_000}
    assert config["Cmd"] == ["/bin/sh", "-ec", "echo hi"]
    history = site.daemon.text("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert history.splitlines()[0] == '/bin/sh -ec #(nop)  CMD ["/bin/sh" "-ec" "echo hi"]'


def test_an_entrypoint_drops_the_command_of_the_base(site: Site) -> None:
    assert site.config(site.image('FROM busybox\nENTRYPOINT ["a"]\n')).get("Cmd") is None
    assert site.config(site.image('FROM busybox\nCMD ["c"]\nENTRYPOINT ["a"]\n'))["Cmd"] == ["c"]


def test_args(site: Site) -> None:
    text = (
        'ARG BASE=busybox\nFROM ${BASE}\nARG X=1\nARG Y\nARG BASE\nENV X2=$X\nRUN echo "[$X][$Y][$BASE][$TARGETARCH]"\n'
        'ARG TARGETARCH\nRUN echo "<$TARGETARCH>"\n'
    )
    shown = site.build(text, "--build-arg", "Y=why", "--build-arg", "NOPE=1")
    assert "[1][why][busybox][]" in shown and f"<{'amd64' if os.uname().machine == 'x86_64' else 'arm64'}>" in shown
    assert "One or more build-args [NOPE] were not consumed" in shown
    assert "[2][][busybox][]" in site.build(text, "--build-arg", "X=2")
    shown = site.build('FROM busybox\nRUN echo "p=$http_proxy"\n', "--build-arg", "http_proxy=pp")
    assert "p=pp" in shown and "not consumed" not in shown


def test_copy(site: Site) -> None:
    site.put("run.sh", "x", 0o750)
    (site.folder / "link").symlink_to("a.txt")
    (site.folder / "sub" / "inner").symlink_to("b.txt")
    image = site.image(
        "FROM busybox\nWORKDIR /w\nCOPY a.txt plain\nCOPY link followed\nCOPY a.txt sub/b.txt many/\nCOPY sub folder\n"
        "COPY *.txt [r]un.sh globbed/\nCOPY --chown=3:4 --chmod=600 a.txt /owned/x\nCOPY --chown=nobody a.txt /nobody\n"
        "COPY . .\nCOPY a.txt /etc/\n"
    )
    script = "cd /w; ls -lnR . /owned /nobody | awk 'NF > 8 {print $1, $3, $4, $9, $11}'; cat /etc/a.txt"
    shown = site.run(image, "sh", "-c", script).splitlines()
    assert "-rw-r--r-- 0 0 plain " in shown and "-rw-r--r-- 0 0 followed " in shown
    assert "lrwxrwxrwx 0 0 inner b.txt" in shown and "-rwxr-x--- 0 0 run.sh " in shown
    assert "-rw------- 3 4 x " in shown and "-rw-r--r-- 65534 65534 /nobody " in shown
    assert "lrwxrwxrwx 0 0 link a.txt" in shown and shown[-1] == "A"


def test_add(site: Site) -> None:
    with tarfile.open(site.folder / "x.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("in/file")
        member.size, member.uid, member.gid, member.mode = 3, 7, 8, 0o640
        archive.addfile(member, io.BytesIO(b"in\n"))
    image = site.image(
        "FROM busybox\nADD x.tar.gz /u/\nADD --chown=1:2 x.tar.gz /o/\nCOPY x.tar.gz /c/\nADD a.txt /p\n"
    )
    shown = site.run(
        image, "sh", "-c", "ls -ln /u/in/file /o/in/file | awk '{print $1,$3,$4,$9}'; ls /c /p; cat /u/in/file"
    )
    assert shown.splitlines() == [
        "-rw-r----- 1 2 /o/in/file", "-rw-r----- 7 8 /u/in/file", "/p", "", "/c:", "x.tar.gz", "in",
    ]  # fmt: skip


def test_stages(site: Site) -> None:
    text = (
        "FROM busybox AS one\nRUN mkdir /d && echo 1 > /d/f && chown 5:6 /d/f && ln -s f /d/l\n"
        "FROM busybox AS unused\nRUN exit 9\n"
        "FROM one AS two\nRUN echo 2 >> /d/f\n"
        "FROM scratch\nCOPY --from=busybox /bin/busybox /bin/\nCOPY --from=one /d /one\nCOPY --from=2 /d/f /two\n"
    )
    image = site.image(text)
    shown = site.run(image, "busybox", "sh", "-c", "busybox ls -ln /one /two; busybox cat /one/l /two")
    assert " 5        6 " in shown and "l -> f" in shown and shown.endswith("1\n1\n2")
    several = site.image(
        "FROM busybox AS a\nRUN mkdir /d; echo x > /d/a; ln /d/a /d/b\nFROM busybox\nCOPY --from=a /d /e\n"
    )
    assert site.run(several, "sh", "-c", "stat -c %h /e/a; [ /e/a -ef /e/b ]") == "2"
    target = site.image(text, "--target", "one")
    assert site.run(target, "cat", "/d/f") == "1"


def test_independent_stages_run_beside_each_other(site: Site) -> None:
    text = "".join(f"FROM busybox AS s{n}\nRUN sleep 2; echo {n} > /f{n}\n" for n in range(4))
    text += "FROM scratch\n" + "".join(f"COPY --from=s{n} /f{n} /\n" for n in range(4))
    began = time.monotonic()
    shown = site.build(text, "--no-cache")
    assert time.monotonic() - began < 7.5
    places = [shown.index(f"Step {n}/13") for n in range(1, 14)]
    assert places == sorted(places)


def test_here_documents_and_shells(site: Site) -> None:
    image = site.image(
        "FROM busybox\nARG N=world\nRUN <<E\necho one > /one\necho $N >> /one\nE\n"
        "RUN cat <<A > /two && cat <<-'B' >> /two\nhello $N\nA\n\ttab $N\n\tB\n"
        "RUN <<S\n#!/bin/sh -e\necho script > /three\nS\n"
        'COPY <<X <<"Y" /h/\nx $N\nX\ny $N "q"\nY\nCOPY --chmod=700 <<one /four\nz\none\n'
    )
    shown = site.run(image, "sh", "-c", "cat /one /two /three /h/X /h/Y; ls -l /four")
    assert shown.startswith('one\nworld\nhello world\ntab $N\nscript\nx world\ny $N "q"\n-rwx------')


def test_mounts_of_run(site: Site) -> None:
    shown = site.build(
        "FROM busybox AS s\nRUN mkdir /d; echo stage > /d/f\nFROM busybox\n"
        "RUN --mount=type=bind,from=s,source=/d,target=/in --mount=type=tmpfs,target=/t cat /in/f; ! touch /in/x; touch /t/x\n"
        "RUN --mount=type=cache,target=/c echo kept >> /c/n\n"
        "RUN --mount=type=cache,target=/c cat /c/n\n"
        "RUN --mount=target=/ctx,rw cat /ctx/a.txt; touch /ctx/new; test ! -e /in -a ! -e /c -a ! -e /t\n"
    )
    assert "stage\n" in shown and "\nkept\n" in shown and "\nA\n" in shown
    assert not (site.folder / "new").exists()


def test_a_run_leaves_only_what_it_wrote(site: Site) -> None:
    image = site.image("FROM busybox\nRUN true\nRUN echo x > /f\nRUN rm /f\nRUN --mount=type=tmpfs,target=/a/b true\n")
    assert layers_of(site.daemon, image)[1:] == [["f"], [".wh.f"]]
    assert [each["Size"] for each in site.daemon.api("GET", f"/images/{image}/history").json][:4] == [0, 0, 2, 0]


def test_users_networks_and_limits(site: Site) -> None:
    shown = site.build(
        "FROM busybox\nUSER 1000:1000\nWORKDIR /made\nRUN id -u; ulimit -n; df -k /dev/shm | tail -1 | awk '{print $2}'\n"
        "RUN --network=none ls /sys/class/net\n",
        "--network", "host", "--ulimit", "nofile=77", "--shm-size", "8m", "--add-host", "zz:1.2.3.4",
    )  # fmt: skip
    assert "\n1000\n77\n8192\n" in shown and "\nlo\n" in shown
    shown = site.build("FROM busybox\nRUN grep zz /etc/hosts\n", "--add-host", "zz:1.2.3.4")
    assert "1.2.3.4\tzz" in shown


def test_containers_that_are_kept(site: Site) -> None:
    shown = site.build("FROM busybox\nRUN echo x > /kept\n", "--rm=false")
    assert "Removed intermediate container" not in shown
    id = shown.partition("Running in ")[2].split()[0]
    assert site.daemon.text("ps", "-aq", "--filter", f"id={id}") == id
    assert site.daemon.docker("cp", f"{id}:/kept", "-").stdout
    site.daemon.docker("rm", id)


def test_triggers(site: Site) -> None:
    base = site.daemon.name()
    site.image("FROM busybox\nONBUILD COPY a.txt /triggered\nONBUILD RUN echo ran > /ran\n", "-t", base)
    shown = site.build(f"FROM {base}\nRUN cat /triggered /ran\n", "-t", f"{base}2")
    assert "# Executing 2 build triggers" in shown and "\nA\nran\n" in shown
    assert site.config(f"{base}2").get("OnBuild") is None


def test_ignored_files(site: Site) -> None:
    site.put("keep.md", "k")
    site.put(".dockerignore", "*\n!keep.md\n!sub\nsub/b.txt\n")
    image = site.image("FROM busybox\nCOPY . /x\n")
    assert "keep.md" in site.run(image, "find", "/x") and "a.txt" not in site.run(image, "find", "/x")
    # The daemon has its own say when a client sends everything.
    body = archive_of({"Dockerfile": "FROM busybox\nCOPY . /x\n", "a": "1", "b": "2", ".dockerignore": "a\n"})
    answer = site.daemon.api("POST", "/build?q=1", body, headers={"Content-Type": "application/x-tar"})
    built = json.loads(answer.body.splitlines()[0])["stream"].strip()
    assert site.run(built, "ls", "/x") == "Dockerfile\nb"


# --- the cache ----------------------------------------------------------------------------------------------------


def test_what_the_cache_goes_by(site: Site) -> None:
    text = "FROM busybox\nCOPY a.txt /a\nRUN echo built\nLABEL x=1\n"
    first = site.image(text)
    os.utime(site.folder / "a.txt", (1, 1))
    assert site.image(text) == first  # times do not count
    assert site.image(text, "--no-cache") != first
    site.put("a.txt", "changed\n")
    shown = site.build(text)
    assert " ---> Using cache" not in shown.partition("COPY")[2]
    site.put("a.txt", "changed\n", 0o600)  # modes do
    assert " ---> Using cache" not in site.build(text).partition("COPY")[2]
    assert "Using cache" in site.build(text.replace("x=1", "x=2")).partition("RUN")[2]


def test_steps_of_another_image(site: Site) -> None:
    name = site.daemon.name()
    text = "FROM busybox\nENV A=1\nCOPY a.txt /a\nRUN cat /proc/sys/kernel/random/uuid > /when\n"
    site.image(text, "-t", name)
    when = site.run(name, "cat", "/when")
    site.daemon.docker("builder", "prune", "-af", env=CLASSIC)
    assert site.run(site.image(text, "--cache-from", name), "cat", "/when") == when
    site.daemon.docker("builder", "prune", "-af", env=CLASSIC)
    assert site.run(site.image(text), "cat", "/when") != when


def test_pruning(site: Site) -> None:
    site.image("FROM busybox\nRUN head -c 3000000 /dev/urandom > /big\nRUN rm /big\n", "-t", site.daemon.name())
    site.image("FROM busybox\nRUN head -c 4000000 /dev/urandom > /big\n")
    rows = site.daemon.api("GET", "/system/df").json["BuildCache"]
    assert {each["Size"] for each in rows} >= {3_000_000, 4_000_000} and all(each["ID"] for each in rows)
    site.daemon.docker("image", "prune", "-f")
    freed = site.daemon.api("POST", "/build/prune", {}).json
    assert 4_000_000 <= freed["SpaceReclaimed"] < 7_000_000 and len(freed["CachesDeleted"]) >= 1
    assert site.daemon.api("POST", "/build/prune?filters=%7B%22zz%22%3A%5B%22a%22%5D%7D").status == 400


# --- contexts -----------------------------------------------------------------------------------------------------


def archive_of(files: dict[str, str], compression: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_compressed_contexts(site: Site, compression: str) -> None:
    body = archive_of({"D": "FROM busybox\nCOPY a /a\n", "a": "x"}, compression)
    answer = site.daemon.api("POST", "/build?dockerfile=D", body, headers={"Content-Type": "application/x-tar"})
    assert answer.status == 200 and b"Successfully built" in answer.body


def test_dockerfiles_from_elsewhere(site: Site, tmp_path: Path) -> None:
    done = site.daemon.docker("build", "-", input="FROM busybox\nRUN echo stdin\n", env=CLASSIC)
    assert b"stdin\n" in done.stdout
    done = site.daemon.docker("build", "-f", "-", str(site.folder), input="FROM busybox\nCOPY a.txt /\n", env=CLASSIC)
    assert b"Successfully built" in done.stdout
    done = site.daemon.docker(
        "build", "-", input=archive_of({"Dockerfile": "FROM busybox\nRUN echo tarred\n"}), env=CLASSIC
    )
    assert b"tarred\n" in done.stdout


class Files(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, silently."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0),
        lambda *rest: Files(*rest, directory=str(folder)),  # type: ignore[arg-type]
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_is_fetched(site: Site) -> None:
    site.put("file.bin", "fetched\n")
    digest = hashlib.sha256(b"fetched\n").hexdigest()
    (site.folder / "context.tgz").write_bytes(archive_of({"Dockerfile": "FROM busybox\nCOPY a /\n", "a": "x"}, "gz"))
    site.put("Remote", "FROM busybox\nRUN echo remote\n")
    with served(site.folder) as url:
        image = site.image(f"FROM busybox\nADD --checksum=sha256:{digest} {url}/file.bin /d/\nADD {url}/file.bin /e\n")
        assert (
            site.run(image, "sh", "-c", "cat /d/file.bin /e; ls -l /e | cut -c1-10") == "fetched\nfetched\n-rw-------"
        )
        assert "digest mismatch" in site.build(
            f"FROM busybox\nADD --checksum=sha256:{'0' * 64} {url}/file.bin /d/\n", check=1
        )
        assert "404" in site.build(f"FROM busybox\nADD {url}/nothing /d/\n", check=1)
        for name, sign in (("context.tgz", "COPY a /"), ("Remote", "remote\n")):
            answer = site.daemon.api("POST", f"/build?remote={url}/{name}")
            lines = "".join(json.loads(line).get("stream", "") for line in answer.body.splitlines())
            assert sign in lines and "Successfully built" in lines, lines


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_repositories_are_refused_where_they_are_not_safe(site: Site) -> None:
    for url in ("file:///etc", "ext::sh", "git://127.0.0.1:1/x.git%23--upload-pack=x"):
        answer = site.daemon.api("POST", f"/build?remote={url}")
        assert answer.status == 400, answer.body
    answer = site.daemon.api("POST", "/build?remote=git://127.0.0.1:1/x.git")
    assert answer.status == 503 and "git cannot fetch" in answer.message


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dockerfile", "sentence"),
    [
        ("FROM busybox\nFOO x", "dockerfile parse error on line 2: unknown instruction: FOO"),
        ("RUN x", "no build stage in current context"),
        ("", "the Dockerfile (Dockerfile) cannot be empty"),
        (
            "FROM busybox\nCOPY nothere /x",
            "COPY failed: file not found in build context or excluded by .dockerignore: stat nothere",
        ),
        ("FROM busybox\nCOPY nothere* /x", "COPY failed: no source files were specified"),
        ("FROM busybox\nCOPY ../../../etc/passwd /x", "file not found in build context"),
        ("FROM busybox\nCOPY a.txt sub/b.txt /x", "the destination must be a directory and end with a /"),
        ("FROM busybox\nCOPY a.txt /bin/sh/x", "cannot copy to non-directory"),
        ("FROM busybox\nCOPY --chown=nosuch a.txt /", "can't find uid for user nosuch"),
        ('FROM busybox\nRUN ["nosuchthing"]', "executable file not found in $PATH"),
        ("FROM busybox\nUSER nosuch\nRUN x", "unable to find user nosuch: no matching entries in passwd file"),
        ("FROM busybox\nENV A=${B:?needed}", "B: needed"),
        ("FROM busybox\nEXPOSE foo", "invalid containerPort: foo"),
        ("FROM busybox\nRUN --mount=type=foo,target=/x y", 'unsupported mount type "foo"'),
        ("FROM busybox\nRUN --security=insecure y", "security.insecure is not allowed"),
        ("FROM busybox AS x\nCOPY --from=x /a /b", "circular dependency on stage: x"),
        ("FROM scratch\nCOPY --from=0 /a /b", "invalid stage index 0"),
        ("FROM busybox\nCOPY --from=127.0.0.1:1/none /a /b", "connection refused"),
    ],
)
def test_faults(site: Site, dockerfile: str, sentence: str) -> None:
    assert sentence in site.build(dockerfile, check=1)


def test_a_failing_command_gives_its_code(site: Site) -> None:
    assert "The command '/bin/sh -c exit 7' returned a non-zero code: 7" in site.build(
        "FROM busybox\nRUN exit 7", check=7
    )
    body = archive_of({"Dockerfile": "FROM busybox\nRUN exit 3\n"})
    answer = site.daemon.api("POST", "/build", body, headers={"Content-Type": "application/x-tar"})
    last = json.loads(answer.body.splitlines()[-1])
    assert last["errorDetail"]["code"] == 3 and last["error"] == last["errorDetail"]["message"]
    assert site.daemon.text("ps", "-aq") == ""


@pytest.mark.parametrize(
    "query",
    [
        "buildargs=x", "buildargs=[]", "labels=1", "cachefrom=%7B%7D", "ulimits=x", "ulimits=[1]", "memory=x", "t=A%20B",
        "target=zz", "extrahosts=x", "platform=a/b/c/d", "dockerfile=../../etc/shadow", "dockerfile=nothere",
        "version=2", "squash=1", "remote=ftp://x",
    ],
)  # fmt: skip
def test_bad_requests(daemon: Daemon, query: str) -> None:
    body = archive_of({"Dockerfile": "FROM busybox\n"})
    answer = daemon.api("POST", f"/build?{query}", body, headers={"Content-Type": "application/x-tar"})
    assert answer.status in (400, 501), answer.body
    assert answer.message


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside")],
        [member("/../../outside")],
        [member("up", tarfile.SYMTYPE, "/tmp"), member("up/insula-build-escape")],
        [member("hard", tarfile.LNKTYPE, "../../../etc/passwd")],
        [member("x" * 5000)],
    ],
)
def test_hostile_contexts(daemon: Daemon, members: list[tarfile.TarInfo]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for each in members:
            archive.addfile(each)
    answer = daemon.api("POST", "/build", buffer.getvalue(), headers={"Content-Type": "application/x-tar"})
    assert answer.status in (400, 413)
    assert not Path("/tmp/insula-build-escape").exists()


def test_links_of_a_context_lead_nowhere_else(site: Site) -> None:
    (site.folder / "passwd").symlink_to("/etc/passwd")
    (site.folder / "etc").symlink_to("/etc")
    for source in ("passwd", "etc/passwd", "etc/hosts"):
        assert "file not found" in site.build(f"FROM busybox\nCOPY {source} /x\n", check=1)
    image = site.image("FROM busybox\nRUN ln -s /etc /out\nCOPY a.txt /out/landed\n")
    assert site.run(image, "cat", "/etc/landed") == "A" and not Path("/etc/landed").exists()


def test_a_client_that_leaves_ends_its_build(site: Site) -> None:
    site.put("Dockerfile", "FROM busybox\nRUN echo begun; sleep 300\n")
    client = site.daemon.popen("build", str(site.folder), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert client.stdout is not None
    try:
        while b"begun" not in client.stdout.readline():
            assert client.poll() is None
    finally:
        client.kill()
        client.wait()
        client.stdout.close()
    until(lambda: site.daemon.text("ps", "-aq") == "", what="the container of the step is gone")
    until(lambda: not list((site.daemon.folder / "d" / "tmp").iterdir()), what="nothing half done is left")


@pytest.mark.peer
def test_docker_py(daemon: Daemon, site: Site) -> None:
    docker = pytest.importorskip("docker")
    client = docker.DockerClient(base_url=f"unix://{daemon.socket}")
    try:
        site.put("Dockerfile", "FROM busybox\nARG A\nRUN echo $A > /a\n")
        image, logs = client.images.build(path=str(site.folder), buildargs={"A": "py"}, tag=daemon.name(), rm=True)
        assert any("Successfully built" in each.get("stream", "") for each in logs)
        assert site.run(image.id, "cat", "/a") == "py"
        with pytest.raises(docker.errors.BuildError, match="returned a non-zero code: 1"):
            client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN false\n"), rm=True)
    finally:
        client.close()
