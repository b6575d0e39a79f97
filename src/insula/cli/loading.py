"""The modules of a daemon, loaded in the order in which a start needs them.

Imports are most of a start. What nobody can ask for before the node is ready (placing with numpy, DNS packets, YAML, signing) is
loaded after that, in a thread; and the machine's certificate authorities, which the HTTP client reads at import, are read by a
thread of their own beside the imports: OpenSSL lets go of the interpreter for that long.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import ssl
import threading
from collections.abc import Callable, Iterator

LATER = (
    "insula.scheduler.loop",
    "insula.networks.dnspackets",
    "insula.api.kube.certificates",
    "insula.api.kube.yamlbody",
    "jwt",
)


def first() -> Callable[[], None]:
    """Load what a start needs. Call what it returns, which may wait, before anything connects to the outside."""
    # The garbage collector finds nothing in modules and would take a seventh of the time.
    gc.disable()
    with _authorities_aside() as reading:
        import aiohttp  # noqa: F401
    import uvloop  # noqa: F401

    import insula.cli.assemble  # noqa: F401

    def complete() -> None:
        for thread in reading:
            thread.join()

    return complete


@contextlib.contextmanager
def _authorities_aside() -> Iterator[list[threading.Thread]]:
    """TLS contexts that are made inside get their authorities from threads, which are given."""
    threads: list[threading.Thread] = []
    load = ssl.SSLContext.load_default_certs

    def later(context: ssl.SSLContext, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:
        threads.append(threading.Thread(target=load, args=(context, purpose), name="authorities"))
        threads[-1].start()

    ssl.SSLContext.load_default_certs = later  # type: ignore[method-assign, assignment]
    try:
        yield threads
    finally:
        ssl.SSLContext.load_default_certs = load  # type: ignore[method-assign]


def rest() -> None:
    """Load the others: call it in a thread."""
    for name in LATER:
        importlib.import_module(name)


def settled() -> None:
    """All is loaded: what there is now stays for good, and the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.enable()
