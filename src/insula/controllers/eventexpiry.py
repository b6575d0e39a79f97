"""Events live for an hour (upstream's default `--event-ttl`). They are looked through now and then, page by page, rather than
held in a cache: there may be many, and nobody waits for their end."""

from __future__ import annotations

from insula import clock
from insula.control.controller import DONE, Context, Controller, Result
from insula.controllers.common import delete_quietly, each
from insula.controllers.refs import EVENTS
from insula.model.resource import Resource

LIFE_S = 3600.0
LOOK_S = 600.0
PAGE = 500


def last_seen(event: Resource) -> str:
    """When an event was last told of; the newer API writes it elsewhere than the older."""
    series = (event.get("series") or {}).get("lastObservedTime")
    return str(series or event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])


def expired(event: Resource, now: str) -> bool:
    """Whether its hour is over."""
    return (clock.parse_rfc3339(now) - clock.parse_rfc3339(last_seen(event))).total_seconds() >= LIFE_S


async def reconcile(context: Context, _: object) -> Result:
    """Delete what is over."""
    token, now, gone = "", clock.rfc3339(clock.now()), 0
    while True:
        page = await context.client.list(EVENTS, limit=PAGE, continue_token=token)
        over = [event for event in page.items if expired(event, now)]
        gone += len(over)
        await each([delete_quietly(context.client, EVENTS, event) for event in over], "old events")
        token = page.continue_token
        if not token:
            return Result(note=f"{gone} events were old") if gone else DONE


CONTROLLER = Controller(
    name="event-expiry",
    summary="deletes events that are over an hour old",
    watches=(),
    reconcile=reconcile,
    workers=1,
    every_s=LOOK_S,
)
