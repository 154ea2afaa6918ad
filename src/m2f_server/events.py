"""The events that `m2f serve` logs and counts."""

from typing import Literal, Protocol

EventName = Literal[
    "ready", "busy", "canary_failed", "stub_lost", "reloaded", "reload_failed", "not_loaded", "guard_lost",
    "look_failed", "server_ended", "tried_alone", "swept", "leaving", "draining", "drained", "drain_failed",
]  # fmt: skip
OF_A_PUBLIC_MODEL: tuple[EventName, ...] = ("ready", "busy", "canary_failed")
OF_A_MODEL: tuple[EventName, ...] = ("stub_lost", "reloaded", "reload_failed")


class Event(Protocol):
    """A function that logs an event."""

    def __call__(self, event: EventName, **circumstances: object) -> None:
        """Log an event with its circumstances."""
