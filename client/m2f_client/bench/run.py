"""One run of `m2f bench`: one number of requests in flight after the other, and what was measured until it ended."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from threading import Event

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from m2f.errors import M2FError
from m2f_client.bench import report
from m2f_client.bench.advice import advise
from m2f_client.bench.figures import Images, Level, Measured, level_of
from m2f_client.bench.load import Call, Callers, Load, Question
from m2f_client.bench.pictures import Pictures
from m2f_client.bench.server import Observer
from m2f_client.client import Client
from m2f_client.printable import complain
from m2f_client.pump import stopped_by_signals
from m2f_client.transports.address import Endpoint, is_this_machine
from m2f_client.transports.connect import connect
from m2f_client.transports.protocol import Connection


@dataclass(frozen=True)
class BenchOptions:
    """The settings of a run.

    Attributes:
        endpoint: the servers.
        question: what to ask of each image.
        in_flight: numbers of requests in flight, in the order of measuring.
        seconds: length of each measurement.
        found: number of images that the sources had.
        as_json: whether to print JSON instead of tables.
    """

    endpoint: Endpoint
    question: Question
    in_flight: Sequence[int]
    seconds: float
    found: int
    as_json: bool


def run(pictures: Pictures, options: BenchOptions) -> int:
    """Measure, print, and return the exit code: 1 if something failed or the run was stopped."""
    with ExitStack() as opened:
        try:
            bench = _Bench(pictures, options, opened)
            bench.measure()
        except M2FError as error:
            complain(str(error))
            return 1
        return bench.finish()


class _Bench:
    """The state of a run."""

    def __init__(self, pictures: Pictures, options: BenchOptions, opened: ExitStack) -> None:
        self._pictures, self._options, self._opened = pictures, options, opened
        self._stop = Event()
        self._transport = self._connect(options.endpoint)
        self._load = Load(self._transport, options.question, pictures, self._stop)
        self._levels: list[Level] = []
        self._calls: list[Call] = []
        self._observer: Observer | None = None
        self._failed = False

    def measure(self) -> None:
        """Measure until the last level is done, the run is stopped, or the server is lost.

        Raises:
            M2FError: the server does not answer at all.
        """
        with stopped_by_signals(self._stop), _progress(silent=self._options.as_json) as progress:
            task = progress.add_task("first answer", total=len(self._options.in_flight))
            self._load.first()
            if not len(self._pictures):
                return
            question = self._options.question
            self._observer = Observer(
                self._every_server(), model=question.model, outputs=question.outputs, timeout=question.timeout
            )
            for in_flight in self._options.in_flight:
                if self._stop.is_set():
                    break
                progress.update(task, description=f"{in_flight} in flight")
                self._level(in_flight, self._observer)
                progress.advance(task)

    def finish(self) -> int:
        """Print what was measured, say what failed, and return the exit code."""
        if self._levels:
            measured = self._measured()
            advice = advise(measured)
            if self._options.as_json:
                click.echo(report.as_json(measured, advice))
            else:
                report.show(measured, advice, Console())
        for complaint in self._pictures.complaints():
            complain(complaint)
        if self._load.lost is not None:
            complain(f"the server was lost: {self._load.lost}")
        elif self._stop.is_set():
            done = ", ".join(str(level.in_flight) for level in self._levels) or "nothing"
            complain(f"stopped; measured in flight: {done}")
        failed = self._failed or self._stop.is_set() or self._pictures.refused or not self._levels
        return 1 if failed else 0

    def _level(self, in_flight: int, observer: Observer) -> None:
        """Measure one number of requests in flight; without an answer there is no figure."""
        with Callers(self._load, in_flight) as callers:
            callers.warm_up()
            before, answered = observer.spent(self._load.answered), self._load.answered
            window = callers.work(self._options.seconds)
        self._failed = self._failed or bool(window.failed)
        if not window.calls:
            for reason, count in window.failed.items():
                complain(f"no answer with {in_flight} in flight, {count} failed: {reason}")
            return
        after = observer.spent(self._load.answered)
        model = observer.counted(before, after, self._load.answered - answered)
        figures = level_of(
            in_flight, window, complete=not self._stop.is_set(), model=model, before=before, after=after,
            steps=observer.steps,
        )  # fmt: skip
        self._levels.append(figures)
        self._calls += window.calls

    def _measured(self) -> Measured:
        endpoint, question, observer = self._options.endpoint, self._options.question, self._observer
        hosts = [target.rpartition(":")[0] for target in endpoint.targets]
        return Measured(
            url=endpoint.url,
            model=question.model,
            outputs=question.outputs,
            on_this_machine=all(map(is_this_machine, hosts)),
            images=self._images(),
            steps=observer.steps if observer is not None else (),
            levels=tuple(self._levels),
            blind=observer.blind if observer is not None else "",
        )

    def _images(self) -> Images:
        pictures = list(self._pictures)
        sides = sorted((call.side for call in self._calls if call.side is not None), key=lambda side: side[0] * side[1])
        found = [call.instances for call in self._calls if call.instances is not None]
        height, width = sides[len(sides) // 2] if sides else (None, None)
        return Images(
            count=len(pictures),
            found=self._options.found,
            bytes=_mean([len(picture.data) for picture in pictures]),
            read_ms=_mean([picture.read_ms for picture in pictures]),
            transcoded=sum(picture.transcoded for picture in pictures),
            height=height,
            width=width,
            instances=_mean(found) if found else None,
        )

    def _connect(self, endpoint: Endpoint) -> Connection:
        connection = connect(endpoint)
        self._opened.enter_context(closing(Client(transport=connection)))
        return connection

    def _every_server(self) -> list[Connection]:
        """Return a connection to each server: each has statistics of its own."""
        endpoint = self._options.endpoint
        if len(endpoint.targets) == 1:
            return [self._transport]
        urls = {target: f"{endpoint.scheme}://{target}{endpoint.path}" for target in endpoint.targets}
        return [self._connect(replace(endpoint, url=url, targets=(target,))) for target, url in urls.items()]


def _mean(numbers: Sequence[float]) -> float:
    return float(np.mean(numbers)) if numbers else 0.0


def _progress(*, silent: bool) -> Progress:
    wanted = sys.stderr.isatty() and not silent
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not wanted)
