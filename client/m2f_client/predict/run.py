"""One run of `m2f predict`: many images, in order, with a journal from which a stopped run resumes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event

import click

from m2f.errors import M2FError
from m2f_client.client import Client
from m2f_client.client_errors import UnreadableImage
from m2f_client.converters.coco import too_large
from m2f_client.predict.annotated import OverlayVideos
from m2f_client.predict.documents import Origin, write_instances, write_panoptic, write_whole
from m2f_client.predict.job import Item, Job, Outcome, save
from m2f_client.predict.journal import Journal, RunSettings
from m2f_client.predict.lines import Complete
from m2f_client.predict.parquet import write_parquet
from m2f_client.predict.patience import AWAY, Patience
from m2f_client.predict.screen import Screen
from m2f_client.predict.shards import Fingerprint, Shard, key_of
from m2f_client.predict.sources import is_file, read, unique_stems
from m2f_client.predict.tiling import Progress, Stopped, Tiles
from m2f_client.predict.video import count_frames, frames, is_video, source_of
from m2f_client.printable import complain
from m2f_client.pump import in_order, stopped_by_signals
from m2f_client.tiled import Tiling
from m2f_client.transports.protocol import Parameter

STDOUT = Path("-")


@dataclass(frozen=True)
class PredictOptions:
    """The settings of a run.

    Attributes:
        names: the sources, see `sources.expand`.
        parameters: request parameters.
        refused: why a source cannot be read, for those that are known not to be images.
        note: a remark on the sources, printed at the end.
        shard: the shard that the sources are; None: they are not divided.
        listing: fingerprint of the sources of all shards.
        out: folder for overlays and documents; None: neither is written.
        raw: whether to save the logits.
        panoptic: whether to save the panoptic segmentation.
        geo: whether to save the instances of each image on earth, as GeoJSON.
        as_json: whether to print the COCO document.
        jsonl: file for the journal; STDOUT: its lines are printed; None: beside the other outputs, while the run lasts.
        parquet: file for a Parquet table of the instances; None: it is not written.
        tiling: how pictures are cut; None: each picture is one request.
        every: of a video, take each `every`-th frame.
        concurrency: number of requests in flight.
        timeout: seconds that the download of an image may take, and that the server may be away.
    """

    names: Sequence[str]
    parameters: Mapping[str, Parameter]
    refused: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None
    shard: Shard | None = None
    listing: Fingerprint = field(default_factory=Fingerprint)
    out: Path | None = None
    raw: bool = False
    panoptic: bool = False
    geo: bool = False
    as_json: bool = False
    jsonl: Path | None = None
    parquet: Path | None = None
    tiling: Tiling | None = None
    every: int = 1
    concurrency: int = 4
    timeout: float = 60.0

    @property
    def journal(self) -> Path | None:
        """The journal file; None: a stopped run cannot be resumed."""
        if self.jsonl is not None and self.jsonl != STDOUT:
            return self.jsonl
        return self.out / "instances.jsonl" if self.out is not None else None

    @property
    def silent(self) -> bool:
        """Whether standard output carries JSON, and so nothing else."""
        return self.as_json or self.jsonl == STDOUT


def run(client: Client, options: PredictOptions) -> int:
    """Do all images, print and write the outputs, and return the exit code: 1 if an image failed or the run stopped."""
    try:
        names = client.class_names
        if options.out is not None:
            save(options.out, lambda out: out.mkdir(parents=True, exist_ok=True))
        stop = Event()
        patience = Patience(options.timeout, stop)

        def progress(name: str, done: int, total: int) -> None:
            running.show_tiles(name, done, total)

        tiles = _tiles(client, patience, options, stop, progress)
        job = Job(
            client,
            patience,
            options.parameters,
            names,
            options.out,
            options.raw,
            options.panoptic,
            options.geo,
            tiles,
        )
        shard = None if options.shard is None else str(options.shard)
        tiling = None if options.tiling is None else options.tiling.members()
        settings = RunSettings(client.model, options.parameters, job.artefacts, shard, tiling)
        journal = Journal(options.journal, settings, None if shard is None else set(options.names))
        try:
            running = _PredictRun(job, journal, options, stop)
            running.work()
            return running.finish()
        finally:
            journal.close()
            if tiles is not None:
                tiles.close()
    except M2FError as error:
        complain(str(error))
        return 1


def _tiles(
    client: Client, patience: Patience, options: PredictOptions, stop: Event, progress: Progress
) -> Tiles | None:
    if options.tiling is None:
        return None
    journal = options.journal
    return Tiles(
        client,
        patience,
        options.parameters,
        options.tiling,
        folder=None if journal is None else journal.with_name(f"{journal.name}.tiles"),
        concurrency=options.concurrency,
        stop=stop,
        progress=progress,
    )


class _PredictRun:
    """The state of a run."""

    def __init__(self, job: Job, journal: Journal, options: PredictOptions, stop: Event) -> None:
        self._job, self._journal, self._options, self._stop = job, journal, options, stop
        used = {source_of(line["file_name"]): _stem(line["overlay"]) for line in journal if "overlay" in line}
        self._stems = unique_stems(options.names, options.out, used=used)
        self._screen = Screen(self._count(), job.names, silent=options.silent, tiled=options.tiling is not None)
        self._videos = OverlayVideos(options.out) if options.out is not None else None
        self._lost = False  # whether a request has failed with one of AWAY
        self._failed = 0

    def work(self) -> None:
        """Do the images that are not done yet."""
        if self._journal.resumed:
            done = _images(self._journal.resumed)
            complain(f"{done} done already; resuming from {self._journal.path} (remove it to start again)")
        with (
            self._screen,
            stopped_by_signals(self._stop),
            in_order(self._job, self._items(), concurrency=self._options.concurrency, stop=self._stop) as outcomes,
        ):
            for outcome in outcomes:
                self._record(outcome)
            self._finish_video(whole=not self._stop.is_set())

    def show_tiles(self, name: str, done: int, total: int) -> None:
        """Show how many tiles of a picture are done; called from several threads."""
        self._screen.tiles(name, done, total)

    def finish(self) -> int:
        """Write the run's documents, report failed and remaining images, and return the exit code."""
        out = self._options.out
        origin = Origin(self._job.client.url, self._job.client.model, self._job.names)
        if out is not None:
            self._write_document(out / "instances.json", write_instances, origin)
            if self._options.panoptic:
                self._write_document(out / "panoptic.json", write_panoptic, origin)
        if self._options.parquet is not None:
            write_whole(self._options.parquet, lambda path: write_parquet(path, self._journal))
            self._screen.note(f"wrote {self._options.parquet}")
        if self._options.as_json:
            write_instances(sys.stdout, self._journal, origin)
        if self._options.note:
            complain(self._options.note)
        if not self._stop.is_set():
            self._complete(origin)
        if not self._stop.is_set() and not self._failed:
            self._journal.close(remove=self._journal.path != self._options.jsonl and self._options.shard is None)
            return 0
        self._say_what_is_left()
        return 1

    def _complete(self, origin: Origin) -> None:
        """Write the last line of a shard's journal, if the run is one."""
        options = self._options
        if options.shard is None:
            return
        images = Fingerprint()
        for name in options.names:
            images.add(key_of(name))
        stated = (str(options.shard), str(images), str(options.listing), origin.model, options.parameters)
        tiling = None if options.tiling is None else options.tiling.members()
        self._journal.complete(Complete(*stated, origin.server, origin.class_names, tiling))

    def _count(self) -> int | None:
        """Return the number of items; None if a video does not state its number of frames."""
        total = 0
        for name in self._options.names:
            frames_in_it = (
                count_frames(name, self._options.every) if _has_frames(name) else int(name not in self._journal)
            )
            if frames_in_it is None:
                return None
            total += frames_in_it
        return total

    def _items(self) -> Iterator[Item]:
        for name in self._options.names:
            if name in self._options.refused:
                yield Item(name, self._stems[name], partial(_fail, UnreadableImage(self._options.refused[name])))
            elif _has_frames(name):
                yield from self._frames(name)
            elif name not in self._journal:
                reading = partial(read, name, timeout=self._options.timeout)
                yield Item(name, self._stems[name], reading, file=name if is_file(name) else None)

    def _frames(self, name: str) -> Iterator[Item]:
        """Yield the frames of a video: also those already done, if an annotated video is written."""
        stem = self._stems[name]
        try:
            for frame in frames(name, self._options.every):
                done = self._journal.get(frame.name)
                if done is None or self._videos is not None:
                    yield Item(frame.name, stem, frame.encoded, frame=frame, done=done)
        except UnreadableImage as error:
            yield Item(name, stem, partial(_fail, error))

    def _record(self, outcome: Outcome) -> None:
        """Write an outcome to the journal, then print it."""
        item, error = outcome.item, outcome.error
        self._screen.no_tiles(item.name)
        if isinstance(error, Stopped):
            return  # the picture stays to be done
        if isinstance(error, AWAY):
            self._stop.set()
            if self._lost:
                return  # it was in flight when the server failed, and stays to be done
            self._lost = True
        if item.done is None:
            line = self._journal.add(outcome.line)
            if self._options.jsonl == STDOUT:
                click.echo(line)
        if error is None and self._job.tiles is not None:
            self._job.tiles.forget(item.name)
        if error is not None:
            self._failed += 1
            complain(f"{item.name}: {error}")
        elif outcome.result is not None:
            self._screen.show(item.name, outcome.result, outcome.written)
            if too_large(*outcome.result.size):
                complain(f"{item.name}: pycocotools cannot read masks of 2^32 pixels or more; m2f and --geo can")
        self._add_to_video(outcome)
        self._screen.advance()

    def _add_to_video(self, outcome: Outcome) -> None:
        frame = outcome.item.frame
        if self._videos is None or frame is None or outcome.picture is None:
            self._finish_video()
            return
        try:
            if not self._videos.takes(frame):
                self._finish_video()
            self._videos.add(frame, outcome.item.stem, outcome.picture)
        except M2FError as error:
            self._failed += 1
            complain(f"{frame.video}: {error}")

    def _finish_video(self, *, whole: bool = True) -> None:
        if self._videos is None:
            return
        try:
            written = self._videos.finish(whole=whole)
        except M2FError as error:
            self._failed += 1
            complain(str(error))
            return
        if written is not None:
            self._screen.note(f"wrote {written}")

    def _write_document(self, target: Path, write: Callable[..., None], origin: Origin) -> None:
        def write_text(path: Path) -> None:
            with path.open("w", encoding="utf-8") as stream:
                write(stream, self._journal, origin)

        write_whole(target, write_text)
        self._screen.note(f"wrote {target}")

    def _say_what_is_left(self) -> None:
        done, path = _images(self._journal.done), self._journal.path
        if path is None:
            if self._stop.is_set():
                complain(f"stopped after {done}; with --out or --jsonl the same command would resume from there")
        elif self._stop.is_set():
            complain(f"stopped; {done} done, kept in {path}: the same command resumes from there")
        else:
            complain(f"{_images(self._failed)} failed, {done} done: the same command retries only the failed ones")


def _images(count: int) -> str:
    return f"{count} image" + ("" if count == 1 else "s")


def _stem(overlay: str) -> str:
    return overlay.rpartition("_overlay.")[0]


def _has_frames(name: str) -> bool:
    """Say whether a source is a video file. A pipe of such a name is not: decoders would wait for it."""
    return is_video(name) and os.path.isfile(name)  # noqa: PTH113 (Path.is_file raises for a name that is too long)


def _fail(error: UnreadableImage) -> bytes:
    raise error
