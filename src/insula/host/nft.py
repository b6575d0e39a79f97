"""nftables through libnftables: one text, one transaction, no fork.

`Nft.run` gives the kernel a list of commands in nft(8)'s language; all of them take effect at once or none does. A context
works in the network namespace of the thread that made it and must stay on that thread. Where the library is missing, the
`nft` program is started instead (slower by some milliseconds).

The library reads all tables of the kernel, other tools' too, and some versions end their process on tables that a newer nft
has made (1.0.6 on sets of 1.1). So after a change that was not ours a child process goes first: what kills it is told as
a fault.

Sources: libnftables(3), libnftables-json(5), nft(8), linux/netfilter/nf_tables.h (NFT_MSG_GETGEN).
"""

from __future__ import annotations

import ctypes
import re
import shutil
import socket
import struct
import subprocess
from typing import Any

import msgspec

from insula.errors import HostFault, Unavailable

_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON
_DEADLINE_S = 10.0
_CHECKS = 5  # while others keep changing their rules
_NETFILTER, _GETGEN, _REQUEST = 12, 10 << 8 | 16, 1


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError:
        return None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = (ctypes.c_uint32,)
    library.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    library.nft_ctx_output_set_flags.argtypes = (ctypes.c_void_p, ctypes.c_uint)
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_ctx_free.restype = None
    return library


class Nft:
    """One context. Blocking; one thread, always the same. Raises Unavailable when neither library nor program is there."""

    def __init__(self) -> None:
        self._library = _load()
        self._context: int | None = None
        self._seen: int | None = None
        self._netlink: socket.socket | None = None
        if self._library is not None:
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
            self._netlink.settimeout(_DEADLINE_S)
            self._context = self._library.nft_ctx_new(0)
            self._library.nft_ctx_buffer_output(self._context)
            self._library.nft_ctx_buffer_error(self._context)
        elif not _program():
            raise Unavailable("nftables is not installed.", hint="install the package nftables (libnftables.so.1)")

    def close(self) -> None:
        """Free the context."""
        if self._library is not None and self._context is not None:
            self._library.nft_ctx_free(self._context)
        self._context = None
        if self._netlink is not None:
            self._netlink.close()

    def run(self, commands: str) -> None:
        """Carry out commands as one transaction. Raises HostFault with nft's own words, Unavailable for rules of others
        that this nft cannot read."""
        self._run(commands, json=False)

    def carry_out(self, commands: str) -> None:
        """`run` without a look at what others have written meanwhile."""
        self._seen = self._generation() if self._library is not None else None
        self._run(commands, json=False)

    def list(self, what: str) -> list[dict[str, Any]]:
        """The answer to a `list` command (`chains`, `table inet x`) as nft's JSON objects, without the meta one."""
        told = self._run(f"list {what}", json=True)
        answer: dict[str, Any] = msgspec.json.decode(told) if told.strip() else {}
        return [entry for entry in answer.get("nftables", []) if "metainfo" not in entry]

    def _run(self, commands: str, *, json: bool) -> str:
        if self._library is None or self._context is None:
            return self._spawn(commands, json=json)
        before = self._checked()
        library, context = self._library, self._context
        library.nft_ctx_output_set_flags(context, _JSON if json else 0)
        code = library.nft_run_cmd_from_buffer(context, commands.encode())
        output: bytes = library.nft_ctx_get_output_buffer(context) or b""
        error: bytes = library.nft_ctx_get_error_buffer(context) or b""
        now = self._generation()
        self._seen = now if before is not None and now in (before, before + 1) else None
        if code:
            raise _fault(commands, error.decode(errors="replace"))
        return output.decode(errors="replace")

    def _checked(self) -> int | None:
        """The number of the rule set, once it is known that the library can read that one; what others change during the check
        is checked again. Raises Unavailable."""
        before = self._generation()
        for _ in range(_CHECKS):
            if before == self._seen and before is not None:
                break
            _check_readable()
            self._seen = before
            if before is None:
                break
            before = self._generation()
        return before

    def _generation(self) -> int | None:
        """The number of the kernel's present rule set, which each change of anybody raises; None when it cannot be asked."""
        assert self._netlink is not None
        try:
            self._netlink.send(struct.pack("=IHHIIBBH", 20, _GETGEN, _REQUEST, 0, 0, 0, 0, 0))
            answer = self._netlink.recv(4096)
        except OSError:
            return None
        number: int = struct.unpack_from(">I", answer, 24)[0] if len(answer) >= 28 else 0
        return number

    def _spawn(self, commands: str, *, json: bool) -> str:
        # a list is a command of its own: from a file its answer would not be told in JSON
        how = ["-j", commands] if json else ["-f", "-"]
        arguments = [_program() or "nft", *how]
        try:
            done = subprocess.run(  # a thread of ours waits, not the event loop
                arguments, input=commands, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
            )
        except subprocess.TimeoutExpired:
            message = f"nft did not end within {_DEADLINE_S:.0f} s."
            raise HostFault(message, command="nft -f - <<'.'\n" + commands + "\n.") from None
        if done.returncode:
            raise _fault(commands, done.stderr)
        return done.stdout


def run_once(commands: str) -> None:
    """Carry out commands as one transaction in the namespace that the calling thread is in now, one that nobody else writes
    rules in: nothing of its rules is looked at before. Blocking. Raises HostFault, Unavailable."""
    nft = Nft()
    try:
        nft.carry_out(commands)
    finally:
        nft.close()


def _check_readable() -> None:
    """Read all rules of the host in a process of its own. Raises Unavailable when that ends it."""
    program = _program()
    if program is None:
        return
    try:
        done = subprocess.run(
            [program, "-t", "list", "ruleset"],  # terse: without the elements of sets
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    if done.returncode < 0:
        raise Unavailable(
            "nftables cannot read the rules of this host: a newer version of it wrote some that this one does not know.",
            hint="find them with the newer nft (`nft list tables`) and delete them, or install that version here",
        )


def _program() -> str | None:
    return shutil.which("nft") or shutil.which("/usr/sbin/nft")


def _fault(commands: str, told: str) -> HostFault:
    reason = re.search(r"Error: (?:Could not process rule: )?(.*)", told)
    sentence = reason.group(1).strip() if reason else told.strip() or "no reason given"
    missing = "Operation not supported" in told or "Protocol not supported" in told
    hint = "the kernel lacks nf_tables or one of nft_chain_nat, nft_masq, nft_fib_inet" if missing else None
    fault = HostFault(
        f"nftables refused a rule set: {sentence}.", command=f"nft -f - <<'.'\n{commands}\n.", stderr=told
    )
    fault.hint = hint
    return fault
