"""Made-up figures of a benchmark."""

from dataclasses import replace

from m2f_client.bench.figures import Images, Level, Measured
from m2f_client.bench.server import Step
from m2f_client.step_times import StepTime

IMAGES = Images(
    count=5, found=5, bytes=60e3, read_ms=0.1, transcoded=0, height=300, width=400, instances=9.0
)  # fmt: skip
STEPS = {
    "preprocess": Step("m_preprocess", "preprocess", "python", 2, 8, True, None, {}),
    "engine": Step("m_engine", "engine", "python", 1, 8, True, (256, 256), {"threads": "0", "precision": "float32"}),
    "postprocess": Step("m_postprocess", "postprocess", "python", 1, 8, False, None, {}),
}


def level(in_flight, rate, **changes):
    """A level at which a call takes what Little's law says: 1 ms in the client, 2 in the network, the rest waiting."""
    mean = in_flight / rate * 1e3
    steps = times(engine=(max(0.0, mean - 27), 21))
    figures = {
        "complete": True,
        "images": 100,
        "p50_ms": mean,
        "p99_ms": 1.5 * mean,
        "mean_ms": mean,
        "client_ms": 1.0,
        "trip_ms": mean - 1,
        "network_ms": 2.0,
        "server_ms": mean - 3,
        "steps": steps,
        "counted": 100,
        "bytes_sent": 60e3,
        "bytes_received": 3e3,
        "client_cores": 0.1,
        "failed": {},
    }
    return Level(in_flight=in_flight, images_per_second=rate, **figures | changes)


def times(*, preprocess=(0.0, 2.0), engine=(0.0, 21.0), postprocess=(0.0, 1.0), batch=1.0):
    """Times of the three steps: milliseconds of waiting and of work."""
    return tuple(
        StepTime(f"m_{name}", work, wait, batch if name == "engine" else 1.0)
        for name, (wait, work) in {"preprocess": preprocess, "engine": engine, "postprocess": postprocess}.items()
    )


def measured(*levels, steps=None, **changes):
    """A benchmark of the model `m` on another machine."""
    whole = Measured(
        url="grpc://far:8001",
        model="m",
        outputs=("scores", "rle"),
        on_this_machine=False,
        images=IMAGES,
        steps=tuple((STEPS | (steps or {})).values()),
        levels=levels,
        blind="",
    )
    return replace(whole, **changes)
