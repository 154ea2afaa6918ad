"""How long the supervisor waits, and how often it tries."""

from dataclasses import dataclass

from m2f_server.triton_2_51 import LEFT_BEHIND_S, MOST_RELOADS


@dataclass(frozen=True, kw_only=True)
class Timing:
    """All periods and limits of the supervision; names that end in `_s` are seconds."""

    tick_s: float = 0.25  # between two looks at the process table
    canary_period_s: float = 5.0  # least time between two canaries
    canary_rest: float = 5.0  # least pause after a canary: `canary_rest x its duration`, so that clients get the engine
    first_timeout_s: float = 60.0  # of the first canary: the first inference of an engine may be slow
    timeout_s: float = 10.0  # of the others: `max(timeout_s, patience x fastest canary)`
    patience: float = 10.0
    longest_work_s: float = 180.0  # then a step that computes but answers nobody is in an endless loop
    failures: int = 3  # failed canaries in a row; then the server is restarted
    reload_attempts: int = 3  # failed reloads of a model in a row; then the server is restarted
    reload_within_s: float = 120.0  # no new attempt to reload after this time
    left_behind_s: float = LEFT_BEHIND_S
    most_reloads: int = MOST_RELOADS
    settle_s: float = 0.2  # at the end of a drain: the last answers reach the clients
    first_delay_s: float = 0.5  # before the first restart of the server; it doubles with each restart
    longest_delay_s: float = 10.0  # before a restart
    long_run_s: float = 60.0  # a server that serves for this long had a good start
    short_runs: int = 5  # servers in a row without a good start; then the supervisor gives up
    live_within_s: float = 30.0  # `/live` fails if the supervisor has not looked at the server for this long
    stop_timeout_s: float = 5.0  # for a drained server to end
