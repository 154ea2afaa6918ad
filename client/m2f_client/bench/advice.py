"""What to turn, and why: rules over the figures of a benchmark.

A rule looks at the figures and returns an `Advice`, or None where it does not apply. docs/bench.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from m2f_client.bench.figures import Level, Measured
from m2f_client.bench.server import Step
from m2f_client.step_times import StepTime

ONE_IMAGE = 1.05
"""Largest mean batch that counts as one image."""

_ENOUGH = 0.95  # of the best throughput: more requests in flight add little
_GROWS = 1.10  # times the throughput of the level before
_MOST = 0.4  # share of a call that a request spends at one step
_QUEUED = 0.2  # share of a call in a later queue, for which preprocessing may hold requests back
_SHARE = 0.3  # share of a call outside the server
_SLOWED = 1.5  # times the work of a step when it is alone
_FULL_CORE = 0.8  # of one core: Python runs one thread at a time
_OTHERS = 1.2  # times the requests of this client
_LARGE = 4  # times the pixels of the engine's input
_PIXEL_WORK = 0.25  # preprocessing's share of the work
_HEAVY = 500_000  # bytes


@dataclass(frozen=True)
class Advice:
    """One thing to turn.

    Attributes:
        turn: what to do.
        because: the figures that say so.
    """

    turn: str
    because: str


def advise(measured: Measured) -> tuple[Advice, ...]:
    """Return what to turn, most important first."""
    if not measured.levels:
        return ()
    found = (rule(measured) for rule in _RULES)
    return tuple(advice for advice in found if advice is not None)


def _failures(measured: Measured) -> Advice | None:
    level = max(measured.levels, key=lambda level: sum(level.failed.values()) / level.images)
    if not level.failed:
        return None
    failed, reason = sum(level.failed.values()), next(iter(level.failed))
    return Advice(
        "Keep fewer requests in flight, or look into the server's log.",
        f"{failed} of {failed + level.images} requests failed with {level.in_flight} in flight: {reason}",
    )


def _others(measured: Measured) -> Advice | None:
    for level in measured.levels:
        if level.counted is not None and level.counted > _OTHERS * level.images + level.in_flight:
            return Advice(
                "Measure while nobody else uses the server.",
                f"with {level.in_flight} in flight the model answered {level.counted} requests, {level.images} of them "
                "this client's: the steps' times are of all",
            )
    return None


def _in_flight(measured: Measured) -> Advice | None:
    levels = sorted(measured.levels, key=lambda level: level.in_flight)
    best = max(levels, key=lambda level: level.images_per_second)
    enough = next(level for level in levels if level.images_per_second >= _ENOUGH * best.images_per_second)
    last = levels[-1]
    if len(levels) == 1:
        return None
    if enough is not last:
        return Advice(
            f"Keep {_requests(enough)} in flight (m2f predict --concurrency {enough.in_flight}; threads or "
            "tasks of your program).",
            f"more wait longer and get hardly more: {_rate(enough)} and p50 {enough.p50_ms:.0f} ms with "
            f"{enough.in_flight}, {_rate(last)} and p50 {last.p50_ms:.0f} ms with {last.in_flight}",
        )
    if best.images_per_second > _GROWS * levels[-2].images_per_second:
        return Advice(
            "Keep more requests in flight, and measure again with a larger --concurrency.",
            f"the throughput still grows: {_rate(levels[-2])} with {levels[-2].in_flight}, {_rate(last)} with "
            f"{last.in_flight}",
        )
    return None


def _full_step(measured: Measured) -> Advice | None:
    """Name the step at which requests spend most of their time under load.

    Preprocessing holds requests back while a later queue is long, so the time there may be another step's.
    """
    level = _busiest(measured)
    if level.in_flight == 1 or not level.steps:
        return None
    steps = {step.name: step for step in measured.steps}
    time = max(level.steps, key=_spent)
    if _spent(time) < _MOST * level.mean_ms:
        return None
    if steps[time.name].role == "preprocess":
        queued = [step for step in level.steps if step.wait_ms >= _QUEUED * level.mean_ms and step != time]
        time = max(queued, key=_spent, default=time)
    batch = f", in batches of {time.batch:.1f} images" if time.batch > ONE_IMAGE else ""
    because = (
        f"with {level.in_flight} in flight a request spends {_spent(time):.0f} of {level.mean_ms:.0f} ms "
        f"({_spent(time) / level.mean_ms:.0%}) at {time.name}: {time.wait_ms:.0f} in its queue, {time.work_ms:.0f} in "
        f"work{batch}"
    )
    return Advice(_faster(steps[time.name], cores_full=_cores_full(measured) is not None), because)


def _spent(time: StepTime) -> float:
    return time.wait_ms + time.work_ms


def _faster(step: Step, *, cores_full: bool) -> str:
    if step.role == "engine":
        return _faster_engine(step)
    if cores_full:
        return f"Give the server more cores: {step.name} is full, and more instances would share the same cores."
    more = f"Raise count in the instance_group of {step.name} from {step.instances} to {step.instances + 1}"
    if step.role == "postprocess":
        return f"{more}, or its parameter threads, or score_threshold."
    if step.role == "preprocess":
        return f"{more}, or send smaller images."
    return f"{more}, or ask for fewer outputs: rle holds the masks of masks and packed_masks."


def _faster_engine(step: Step) -> str:
    if step.runs_on == "python":
        bfloat16 = f"precision bfloat16 of {step.name} on a processor with AMX, "
        return (
            "Make the engine faster, for which everything else waits: more cores, a smaller --size of m2f export, "
            f"{'' if step.parameters.get('precision') == 'bfloat16' else bfloat16}or a GPU."
        )
    if not step.batches and step.max_batch > 1:
        return f"Add dynamic_batching {{ }} to the configuration of {step.name}: it works on one request at a time."
    return (
        "Make the engine faster (m2f export --precision fp16, a smaller --size), or raise count in the instance_group "
        f"of {step.name} from {step.instances} to {step.instances + 1}."
    )


def _cores_full(measured: Measured) -> Advice | None:
    """Compare the work of the last step alone and under load: its work is the same, unless others take its core."""
    alone, busy = _calmest(measured), _busiest(measured)
    name = next((step.name for step in measured.steps if step.role == "postprocess"), "")
    before, after = (next((t.work_ms for t in level.steps if t.name == name), 0.0) for level in (alone, busy))
    if alone.in_flight > 1 or not before or after < _SLOWED * before:
        return None
    shared = " This client runs on the same machine, and takes its share." if measured.on_this_machine else ""
    return Advice(
        f"Give the server more cores; more instances or threads would not help.{shared}",
        f"the steps take each other's cores: {name} works {before:.1f} ms with 1 in flight and {after:.1f} ms with "
        f"{busy.in_flight}",
    )


def _client(measured: Measured) -> Advice | None:
    level = _busiest(measured)
    if level.client_cores < _FULL_CORE:
        return None
    return Advice(
        "Send from several processes, or from several machines.",
        f"this client is at its limit with {level.in_flight} in flight: it uses {level.client_cores:.2f} cores, and "
        "Python runs one thread at a time",
    )


def _network(measured: Measured) -> Advice | None:
    level = _calmest(measured)
    if level.network_ms is None or level.network_ms < max(2.0, _SHARE * level.mean_ms):
        return None
    because = (
        f"{level.network_ms:.1f} of {level.mean_ms:.1f} ms are spent between client and model, for "
        f"{size(level.bytes_sent)} to the server and {size(level.bytes_received)} back"
    )
    if max(level.bytes_sent, level.bytes_received) < _HEAVY:
        return Advice("Move the client closer to the server, or keep more requests in flight.", because)
    if level.bytes_received > level.bytes_sent:
        return Advice(
            "Ask for smaller outputs: rle instead of masks. On one machine, Client(shared_memory=True) sends large "
            "outputs through memory.",
            because,
        )
    return Advice("Send smaller images, or JPEG instead of PNG.", because)


def _large_images(measured: Measured) -> Advice | None:
    level, images = _calmest(measured), measured.images
    engine = next((step for step in measured.steps if step.role == "engine" and step.input_size), None)
    work = {time.name: time.work_ms for time in level.steps}
    first = next((step.name for step in measured.steps if step.role == "preprocess"), "")
    if engine is None or engine.input_size is None or images.height is None or images.width is None or not work:
        return None
    height, width = engine.input_size
    large = images.height * images.width >= _LARGE * height * width
    if not large or work.get(first, 0.0) < _PIXEL_WORK * sum(work.values()):
        return None
    return Advice(
        f"Send smaller images, if masks of their size are enough: the engine sees {width} x {height}.",
        f"{first} takes {work[first]:.1f} of {sum(work.values()):.1f} ms of work; half of your images have more than "
        f"{images.width} x {images.height} pixels",
    )


def _formats(measured: Measured) -> Advice | None:
    images, level = measured.images, _calmest(measured)
    if not images.transcoded or images.read_ms < _SHARE * level.mean_ms:
        return None
    return Advice(
        "Store the images as JPEG, PNG or WebP.",
        f"{images.transcoded} of {images.count} images are sent as PNG; reading and compressing takes the client "
        f"{images.read_ms:.1f} ms an image, beside the {level.mean_ms:.1f} ms of the call",
    )


def _calmest(measured: Measured) -> Level:
    return min(measured.levels, key=lambda level: level.in_flight)


def _busiest(measured: Measured) -> Level:
    return max(measured.levels, key=lambda level: level.in_flight)


def _requests(level: Level) -> str:
    return f"{level.in_flight} request" + ("" if level.in_flight == 1 else "s")


def _rate(level: Level) -> str:
    return f"{level.images_per_second:.1f} images/s"


def size(count: float) -> str:
    """Return a number of bytes for people."""
    if count < 1e3:
        return f"{count:.0f} B"
    return f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


_RULES: tuple[Callable[[Measured], Advice | None], ...] = (
    _failures, _others, _in_flight, _full_step, _cores_full, _client, _network, _large_images, _formats,
)  # fmt: skip
