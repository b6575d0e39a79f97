"""nftables through libnftables: one text, one transaction, no fork.

`Nft.run` gives the kernel a list of commands in nft(8)'s language; all of them take effect at once or none does. A context
works in the network namespace of the thread that made it and must stay on that thread. Where the library is missing, the
`nft` program is started instead (slower by some milliseconds).

Sources: libnftables(3), libnftables-json(5), nft(8).
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from typing import Any

import msgspec

from insula.errors import HostFault, Unavailable

_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON
_DEADLINE_S = 10.0


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


def _check_readable() -> None:
    """Read all rules of the host once in a process of its own: the library crashes, and would take us along, where a newer
    nftables has written rules that this version cannot read (1.0.6 does so with rules of 1.1). Raises Unavailable."""
    program = shutil.which("nft") or "/usr/sbin/nft"
    try:
        done = subprocess.run(
            [program, "list", "ruleset"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=_DEADLINE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    if done.returncode < 0:
        raise Unavailable(
            "nftables cannot read the rules of this host: a newer version of it wrote some that this one does not know.",
            hint="find them with the newer nft (`nft list tables`) and delete them, or install that version here",
        )


class Nft:
    """One context. Blocking; one thread, always the same. Raises Unavailable when neither library nor program is there."""

    def __init__(self) -> None:
        _check_readable()
        self._library = _load()
        self._context: int | None = None
        if self._library is not None:
            self._context = self._library.nft_ctx_new(0)
            self._library.nft_ctx_buffer_output(self._context)
            self._library.nft_ctx_buffer_error(self._context)
        elif not (shutil.which("nft") or shutil.which("/usr/sbin/nft")):
            raise Unavailable("nftables is not installed.", hint="install the package nftables (libnftables.so.1)")

    def close(self) -> None:
        """Free the context."""
        if self._library is not None and self._context is not None:
            self._library.nft_ctx_free(self._context)
        self._context = None

    def run(self, commands: str) -> None:
        """Carry out commands as one transaction. Raises HostFault with nft's own words."""
        self._run(commands, json=False)

    def list(self, what: str) -> list[dict[str, Any]]:
        """The answer to a `list` command (`chains`, `table inet x`) as nft's JSON objects, without the meta one."""
        told = self._run(f"list {what}", json=True)
        answer: dict[str, Any] = msgspec.json.decode(told) if told.strip() else {}
        return [entry for entry in answer.get("nftables", []) if "metainfo" not in entry]

    def _run(self, commands: str, *, json: bool) -> str:
        if self._library is None or self._context is None:
            return self._spawn(commands, json=json)
        library, context = self._library, self._context
        library.nft_ctx_output_set_flags(context, _JSON if json else 0)
        code = library.nft_run_cmd_from_buffer(context, commands.encode())
        output: bytes = library.nft_ctx_get_output_buffer(context) or b""
        error: bytes = library.nft_ctx_get_error_buffer(context) or b""
        if code:
            raise _fault(commands, error.decode(errors="replace"))
        return output.decode(errors="replace")

    def _spawn(self, commands: str, *, json: bool) -> str:
        program = shutil.which("nft") or "/usr/sbin/nft"
        arguments = [program, *(["-j"] if json else []), "-f", "-"]
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
