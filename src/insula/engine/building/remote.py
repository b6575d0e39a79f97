"""What a build fetches itself: files over HTTP, repositories through git. Everything comes from strangers."""

from __future__ import annotations

import posixpath
import re
import shutil
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp
from msgspec import Struct

from insula.errors import Invalid, NotFound, Unavailable
from insula.host import spawn
from insula.host.rootfd import Root, split
from insula.images.bounded import Room
from insula.tasks import in_thread

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
_GIT_DEADLINE_S = 1800.0
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+@-]{0,250}")
_SCP = re.compile(r"[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:(?!//).+")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_GIT_ENV = {
    **spawn.ENVIRONMENT,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ALLOW_PROTOCOL": "http:https:git:ssh",
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
    "HOME": "/nonexistent",
}


class Fetched(Struct, frozen=True, kw_only=True):
    """A file that was fetched. `modified` in seconds since the epoch, 0 when the server did not say."""

    path: str
    name: str
    modified: int
    content_type: str


class Repository(Struct, frozen=True, kw_only=True):
    """A git repository, what of it, and where in it."""

    url: str
    ref: str = ""
    folder: str = ""


def is_url(text: str) -> bool:
    """Whether a source of ADD or a context is fetched over HTTP."""
    return text.lower().startswith(("http://", "https://"))


def repository(text: str) -> Repository | None:
    """The repository that a URL means, if it means one: `git://…`, `git@host:path`, `ssh://…`, `https://….git#ref:folder`.
    Raises Invalid."""
    url, _, fragment = text.partition("#")
    path = urlsplit(url).path if "://" in url else ""
    known = url.startswith(("git://", "ssh://")) or _SCP.fullmatch(url) or (is_url(url) and path.endswith(".git"))
    if url.startswith("github.com/"):
        known, url = True, f"https://{url}"
    if not known:
        return None
    ref, _, folder = fragment.partition(":")
    if ref and not _REF.fullmatch(ref):
        raise Invalid(f"{ref!r} is no branch, tag or commit", field="remote")
    if url.startswith("-") or any(character.isspace() for character in url):
        raise Invalid(f"{url!r} is no address of a git repository", field="remote")
    return Repository(url=url, ref=ref, folder="/".join(split(folder)))


async def fetch(url: str, target: Path) -> Fetched:
    """Fetch a file over HTTP into `target`. Raises Unavailable, NotFound, HostFault (no room)."""
    room = Room(target.parent)
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False, trust_env=True) as session,
            session.get(url) as answer,
        ):
            if answer.status in (404, 410):
                raise NotFound(f"failed to GET {url} with status {answer.status} {answer.reason}")
            if answer.status != 200:
                raise Unavailable(f"failed to GET {url} with status {answer.status} {answer.reason}")
            with target.open("xb") as file:
                async for chunk in answer.content.iter_chunked(1 << 20):
                    await in_thread(room.take, len(chunk))
                    await in_thread(file.write, chunk)
            return Fetched(
                path=str(target),
                name=_name(str(answer.url), answer.headers.get("Content-Disposition", "")) or _name(url, ""),
                modified=_time(answer.headers.get("Last-Modified", "")),
                content_type=answer.content_type,
            )
    except (aiohttp.ClientError, TimeoutError, ValueError) as fault:
        raise Unavailable(f"cannot fetch {url}: {fault or 'timed out'}") from fault


def _name(url: str, disposition: str) -> str:
    match = re.search(r'filename="?([^";/\\]+)"?', disposition)
    name = match[1] if match else posixpath.basename(unquote(urlsplit(url).path))
    return "" if name in (".", "..") or "/" in name or "\0" in name else name


def _time(text: str) -> int:
    try:
        return max(0, int(parsedate_to_datetime(text).timestamp()))
    except (TypeError, ValueError, OverflowError):
        return 0


async def clone(source: Repository, target: Path, *, keep_git_dir: bool = False) -> tuple[str, str]:
    """Check a repository out, with its submodules. Returns the folder in it and the commit. Raises Unavailable, Invalid."""
    if shutil.which("git") is None:
        raise Unavailable("building from a git repository needs git on this machine", hint="install the package git")
    await in_thread(target.mkdir, mode=0o755)
    git = [
        "git",
        "-c",
        "protocol.file.allow=never",
        "-c",
        "core.hooksPath=/dev/null",
        "-c",
        "advice.detachedHead=false",
    ]

    async def run(*words: str, check: bool = True) -> spawn.Completed:
        done = await spawn.run([*git, *words], env=_GIT_ENV, cwd=str(target), deadline_s=_GIT_DEADLINE_S, check=False)
        if check and done.code != 0:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
            raise Unavailable(f"git cannot fetch {source.url}: {last[0]}")
        return done

    await run("init", "--quiet")
    await run("remote", "add", "origin", "--", source.url)
    ref = source.ref or "HEAD"
    if (await run("fetch", "--quiet", "--depth", "1", "origin", "--", ref, check=False)).code != 0:
        await run("fetch", "--quiet", "--tags", "origin")  # a server that gives no single commits
        ref_found = ref if _COMMIT.fullmatch(ref) else f"origin/{ref}"
        await run("checkout", "--quiet", "--force", ref_found, "--")
    else:
        await run("checkout", "--quiet", "--force", "FETCH_HEAD", "--")
    await run("submodule", "update", "--quiet", "--init", "--recursive", "--depth", "1")
    commit = (await run("rev-parse", "HEAD")).stdout.decode().strip()
    if not keep_git_dir:
        await in_thread(shutil.rmtree, target / ".git")
    return await in_thread(_folder_in, target, source.folder), commit


def _folder_in(target: Path, folder: str) -> str:
    with Root(str(target)) as root:
        try:
            return str(Path(f"/proc/self/fd/{root.folder(split(folder))}").readlink())
        except OSError as fault:
            raise NotFound(f"the repository has no folder {folder!r}: {fault.strerror}") from fault
