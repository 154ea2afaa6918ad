"""How long the supervisor waits, and how often it tries."""

from dataclasses import dataclass

from m2f_server.triton_2_51 import LEFT_BEHIND_S, MOST_RELOADS


@dataclass(frozen=True, kw_only=True)
class Timing:
    """All periods and limits of the supervision; names ending in `_s` are seconds.

    Attributes:
        tick_s: between two looks at the process table.
        canary_period_s: between two canaries, at least.
        canary_rest: pause after a canary, at least, as a multiple of its duration. It leaves a slow engine to clients.
        first_timeout_s: timeout of the first canary; the first inference of an engine may be slow.
        timeout_s: least timeout of later canaries: `max(timeout_s, patience x fastest canary)`.
        patience: see `timeout_s`.
        longest_work_s: time after which a step that computes but answers nobody is in an endless loop. The largest
            allowed request takes less on a slow processor.
        failures: failed canaries in a row after which the server is restarted.
        reload_attempts: attempts to reload a model before the server is restarted.
        reload_within_s: no new attempt starts after this time.
        left_behind_s: time that the old stubs of a reloaded model get to finish their requests.
        most_reloads: number of reloads after which the server is replaced.
        settle_s: pause at the end of a drain, in which the last answers reach the clients.
        first_delay_s: pause before the first restart of the server; it doubles with each restart.
        longest_delay_s: longest pause before a restart.
        long_run_s: a server that serves for this long had a good start.
        short_runs: servers in a row without a good start after which the supervisor gives up.
        live_within_s: `/live` fails if the supervisor has not looked at the server for this long.
        stop_timeout_s: time for a drained server to end.
    """

    tick_s: float = 0.25
    canary_period_s: float = 5.0
    canary_rest: float = 5.0
    first_timeout_s: float = 60.0
    timeout_s: float = 10.0
    patience: float = 10.0
    longest_work_s: float = 180.0
    failures: int = 3
    reload_attempts: int = 3
    reload_within_s: float = 120.0
    left_behind_s: float = LEFT_BEHIND_S
    most_reloads: int = MOST_RELOADS
    settle_s: float = 0.2
    first_delay_s: float = 0.5
    longest_delay_s: float = 10.0
    long_run_s: float = 60.0
    short_runs: int = 5
    live_within_s: float = 30.0
    stop_timeout_s: float = 5.0
