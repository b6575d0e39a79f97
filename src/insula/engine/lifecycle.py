"""The life of an instance as one table: which verb is legal in which stage, and where it leads.

                       ┌───────────── undo ─────────────┐
                       ▼                                │
    creating ──► created ──► starting ──► running ──► ending ──► exited
        │           │  ▲        │            (paused)              │ │
        │ undo      │  └──undo──┘                 start, restart ◄─┘ │
        └───────────┴──────────────────► removing ◄──────────────────┘ ──► gone

`MOVES` says it to the program, `refuse` says it to a person in the Docker Engine's sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from insula.engine.contract import State, StateName
from insula.engine.records import Entry, Stage
from insula.errors import Conflict


class Verb(StrEnum):
    """What changes a stage."""

    PREPARED = "prepared"
    START = "start"
    STARTED = "started"
    UNDO = "undo"
    END = "end"
    SETTLE = "settle"
    REMOVE = "remove"


MOVES: Mapping[Stage, Mapping[Verb, Stage]] = {
    Stage.CREATING: {Verb.PREPARED: Stage.CREATED, Verb.REMOVE: Stage.REMOVING},
    Stage.CREATED: {Verb.START: Stage.STARTING, Verb.REMOVE: Stage.REMOVING},
    Stage.STARTING: {Verb.STARTED: Stage.RUNNING, Verb.UNDO: Stage.CREATED, Verb.END: Stage.ENDING},
    Stage.RUNNING: {Verb.END: Stage.ENDING},
    Stage.ENDING: {Verb.SETTLE: Stage.EXITED, Verb.END: Stage.ENDING, Verb.REMOVE: Stage.REMOVING},
    Stage.EXITED: {Verb.START: Stage.STARTING, Verb.REMOVE: Stage.REMOVING},
    Stage.REMOVING: {Verb.REMOVE: Stage.REMOVING},
}


def move(stage: Stage, verb: Verb) -> Stage:
    """Where a verb leads. Raises Conflict where the table has no such move: a fault of ours or a race that was lost."""
    target = MOVES[stage].get(verb)
    if target is None:
        raise Conflict(f"an instance that is {stage} cannot {verb}")
    return target


def state_name(entry: Entry, *, restarting: bool) -> StateName:
    """The stage in the Docker Engine's words."""
    match entry.stage:
        case Stage.CREATING | Stage.CREATED:
            return "exited" if entry.finished_at else "created"
        case Stage.STARTING:
            return "restarting" if restarting else ("exited" if entry.started_at else "created")
        case Stage.RUNNING | Stage.ENDING:
            return "paused" if entry.paused else "running"
        case Stage.EXITED:
            return "restarting" if restarting else "exited"
        case Stage.REMOVING:
            return "removing"


def state_of(entry: Entry, *, restarting: bool = False) -> State:
    """All of the state, as clients see it. `restarting` is known only to the one who supervises it."""
    name = state_name(entry, restarting=restarting)
    live = name in ("running", "paused")
    return State(
        name=name,
        pid=entry.pid if live else 0,
        exit_code=0 if live else entry.exit_code,
        oom_killed=entry.oom_killed,
        error=entry.error,
        started_at=entry.started_at,
        finished_at=entry.finished_at,
        restart_count=entry.restart_count,
        health=entry.health.status,
        failing_streak=entry.health.failing_streak,
        health_log=entry.health.log,
    )


def refuse_unless_running(entry: Entry) -> None:
    """Raises Conflict for one that has no process."""
    if entry.stage is not Stage.RUNNING:
        raise Conflict(f"container {entry.id} is not running")


def refuse_start(entry: Entry) -> None:
    """Raises Conflict for one that may not be started now."""
    if entry.paused:
        raise Conflict("cannot start a paused container, try unpause instead")
    if entry.stage is Stage.REMOVING:
        raise Conflict("container is marked for removal and cannot be started")


def refuse_remove(entry: Entry, *, restarting: bool) -> None:
    """Raises Conflict for one that runs, with the way out."""
    name = state_name(entry, restarting=restarting)
    if name == "paused":
        raise Conflict(f'cannot remove container "/{entry.name}": container is paused and must be unpaused first')
    if name in ("running", "restarting"):
        raise Conflict(
            f'cannot remove container "/{entry.name}": container is {name}: '
            "stop the container before removing or force remove"
        )
