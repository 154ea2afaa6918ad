"""A client for the page: it also measures the time of each step on the server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m2f.ensembles import read_ensemble
from m2f.errors import M2FError
from m2f.settings import Settings
from m2f_client.answer import readable
from m2f_client.client import Client, Progress
from m2f_client.result import Result
from m2f_client.step_times import Spent, StepTime, spent, steps_between
from m2f_client.tiled import Tiling
from m2f_client.transports.protocol import Connection, Deadline
from m2f_client.transports.waiting import run_blocking

_COUNTED_S = 1.0  # longest wait until the server's statistics count a request


@dataclass(frozen=True)
class Question:
    """What is asked about an image.

    Attributes:
        score_threshold: minimum score, 0 to 1.
        classes: class indices to look for; empty: all.
        tiling: how the image is cut into tiles; None: it is one request.
    """

    score_threshold: float
    classes: Sequence[int] = ()
    tiling: Tiling | None = None


@dataclass(frozen=True)
class TimedAnswer:
    """An answer of the server, and the time it took.

    Attributes:
        result: the structured outputs.
        total_ms: milliseconds of the whole call, measured by the client.
        steps: the steps in the ensemble's order, as means over the requests; empty if the server does not report
            statistics.
        requests: number of requests: 1, or that of the tiles.
    """

    result: Result
    total_ms: float
    steps: tuple[StepTime, ...]
    requests: int = 1


class TimedClient:
    """A client that times each step. Safe to share between threads.

    Args:
        transport: the connection; `close` closes it.
        model: name of a public model.
        timeout: seconds for a whole request.

    Attributes:
        url: address of the server.
        model: name of the model.
        class_names: the model's class names; None if the model states none.
        score_threshold: the threshold that the server uses for requests without one.

    Raises:
        ServerUnavailable, ModelNotFound, Timeout, ServerError: see `m2f_client.client_errors`.
    """

    def __init__(self, transport: Connection, *, model: str, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self._client = Client(transport=transport, model=model, timeout=timeout)
        self.url, self.model = transport.url, model
        self.class_names = self._client.class_names
        self._steps, postprocess = self._read_steps()
        self.score_threshold = self._read_settings(postprocess).score_threshold

    def ask(self, image: Path, question: Question, *, progress: Progress | None = None) -> TimedAnswer:
        """Find the instances of an image file.

        Args:
            image: the image file, of any format that `Client.predict` takes.
            question: what is asked.
            progress: called with the number of tiles done and the number of all tiles, after each tile.

        Raises:
            M2FError: as `Client.predict` and `Client.predict_tiled`.
        """
        requests = 1

        def count(done: int, total: int) -> None:
            nonlocal requests
            requests = total
            if progress is not None:
                progress(done, total)

        before = self._spent()
        start = time.perf_counter()
        result = self._predict(image, question, count)
        total = time.perf_counter() - start
        steps = steps_between(before, self._counted(before, requests), self._steps)
        return TimedAnswer(result, total * 1e3, steps, requests)

    def _predict(self, image: Path, question: Question, progress: Progress) -> Result:
        threshold, classes = question.score_threshold, ",".join(map(str, question.classes)) or None
        tiling = question.tiling
        if tiling is None:
            return self._client.predict(image, score_threshold=threshold, classes=classes)
        return self._client.predict_tiled(
            image,
            tile=tiling.tile,
            overlap=tiling.overlap,
            whole=tiling.whole,
            progress=progress,
            score_threshold=threshold,
            classes=classes,
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _read_steps(self) -> tuple[tuple[str, ...], str | None]:
        """Return the model's steps, and the step whose settings are the model's; no steps if it is no ensemble."""
        config = run_blocking(self._transport.model_config(self.model, self._timeout))
        with readable():
            ensemble = read_ensemble(config)
        return (ensemble.steps, ensemble.postprocess) if ensemble is not None else ((), None)

    def _read_settings(self, step: str | None) -> Settings:
        if step is None:
            return Settings()
        config = run_blocking(self._transport.model_config(step, self._timeout))
        with readable():
            parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        return Settings.from_repository(parameters)

    def _counted(self, before: dict[str, Spent], requests: int) -> dict[str, Spent]:
        """Return the statistics once they count the requests. Triton answers before it counts, the ensemble last."""
        deadline = Deadline(_COUNTED_S)
        after = self._spent()
        while before and self._requests(after) < self._requests(before) + requests and deadline.left():
            time.sleep(0.002)
            after = self._spent()
        return after

    def _spent(self) -> dict[str, Spent]:
        try:
            return spent(run_blocking(self._transport.statistics(self._timeout)))
        except M2FError:
            return {}  # a proxy may block statistics; the instances are shown all the same

    def _requests(self, spent: dict[str, Spent]) -> int:
        """Return the number of requests that the model has answered."""
        return spent.get(self.model, Spent()).requests
