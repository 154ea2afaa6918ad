"""How long the supervisor waits, and how often it tries."""

from dataclasses import dataclass

from m2f_server.triton_2_51 import LEFT_BEHIND_S, MOST_RELOADS


@dataclass(frozen=True, kw_only=True)
class Timing:
    """All periods and limits of the supervision; names that end in `_s` are seconds."""

    tick_s: float = 0.25  # between two looks at the process table
    pulse_period_s: float = 1.0  # between two questions whether the server lives
    pulse_timeout_s: float = 1.0  # then the kernel is asked why there is no answer
    last_words_s: float = 1.0  # for a server that handles a fatal signal to end by itself
    quiet_s: float = 4.0  # then a server that does not answer and does nothing is frozen
    canary_period_s: float = 5.0  # least time between two canaries
    canary_rest: float = 5.0  # least pause after a canary: `canary_rest x its duration`, so that clients get the engine
    first_timeout_s: float = 60.0  # of the first canary: the first inference of an engine may be slow
    timeout_s: float = 10.0  # of the others: `max(timeout_s, patience x fastest canary)`
    patience: float = 10.0
    longest_work_s: float = 180.0  # then a step that computes but answers nobody is in an endless loop
    models_period_s: float = 5.0  # between two looks at which models are loaded
    busy_period_s: float = 1.0  # between two reads of how long models were at work
    failures: int = 3  # failed canaries of a model in a row; then the model is beyond help
    reload_attempts: int = 3  # failed reloads of a model in a row; then the models that need it are beyond help
    reload_within_s: float = 120.0  # no new attempt to reload after this time
    first_rest_s: float = 10.0  # of a model after a reload in vain; twice as long after each more in a row
    longest_rest_s: float = 300.0
    left_behind_s: float = LEFT_BEHIND_S
    most_reloads: int = MOST_RELOADS
    settle_s: float = 0.2  # at the end of a drain: the last answers reach the clients
    first_delay_s: float = 0.25  # before a restart; twice as long after each server in a row that never answered right
    longest_delay_s: float = 10.0  # before a restart
    long_run_s: float = 60.0  # after a server that served for this long, the next one is started at once
    bad_servers: int = 5  # in a row that were not ready or never answered right; then the supervisor gives up
    miss_period_s: float = 10.0  # between two log lines about rounds that could not look
    live_within_s: float = 30.0  # `/live` fails if the supervisor has not looked at the server for this long
    stop_timeout_s: float = 5.0  # for a drained server to end
