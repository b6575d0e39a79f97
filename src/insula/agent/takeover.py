"""One viewer at a time: a new viewer of a console takes it over from the last one, as KubeVirt does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable

from insula.errors import Conflict


class Claims:
    """Who holds what. A holder is a task; taking over cancels it and waits until it has let go."""

    def __init__(self) -> None:
        self._holders: dict[Hashable, asyncio.Task[object]] = {}

    @contextlib.asynccontextmanager
    async def hold(self, what: Hashable, *, keep: bool = False) -> AsyncIterator[None]:
        """Hold it for the block. With `keep` an active holder is left alone: raises Conflict."""
        me = asyncio.current_task()
        assert me is not None
        while (holder := self._holders.get(what)) is not None and holder is not me:
            if keep:
                raise Conflict("another session is active and preserveSession was asked for")
            holder.cancel()
            await asyncio.wait((holder,), timeout=5.0)
            if self._holders.get(what) is holder:
                del self._holders[what]
        self._holders[what] = me
        try:
            yield
        finally:
            if self._holders.get(what) is me:
                del self._holders[what]
