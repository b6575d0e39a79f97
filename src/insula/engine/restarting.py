"""Whether and when an ended instance is started again: pure decisions, the Docker Engine's rules.

Docker's documentation ("Start containers automatically") and observed behaviour: the first restart comes after 100 ms, each
further one after twice the time up to one minute, and a run of ten seconds or more starts the series again.
"""

from __future__ import annotations

from insula.model.instance import RestartPolicy

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 60.0
GOOD_RUN_S = 10.0


def wants_restart(policy: RestartPolicy, *, exit_code: int, user_stopped: bool, restart_count: int) -> bool:
    """After an exit while Insula runs."""
    if user_stopped:
        return False
    match policy.name:
        case "always" | "unless-stopped":
            return True
        case "on-failure":
            return exit_code != 0 and (policy.max_retries == 0 or restart_count < policy.max_retries)
        case _:
            return False


def wants_start_on_boot(
    policy: RestartPolicy, *, exit_code: int, user_stopped: bool, restart_count: int, has_run: bool
) -> bool:
    """When Insula starts and finds it ended. `always` forgets that a user stopped it, as Docker documents."""
    if not has_run:
        return False
    forgets = policy.name == "always"
    return wants_restart(
        policy, exit_code=exit_code, user_stopped=user_stopped and not forgets, restart_count=restart_count
    )


def next_delay_s(previous_s: float, *, ran_s: float) -> float:
    """How long to wait before the next start. `previous_s` is the last such wait, 0 for none; `ran_s` how long it ran."""
    if ran_s >= GOOD_RUN_S or previous_s == 0:
        return FIRST_DELAY_S
    return min(LONGEST_DELAY_S, previous_s * 2)
