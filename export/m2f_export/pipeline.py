"""From a checkpoint to a repository that Triton serves, in steps; each is checked before the next begins."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from m2f.agreement import CONFIDENT, Found
from m2f.contract import PUBLIC_MODEL, RAW_OUTPUTS, STRUCTURED_OUTPUTS, models_of
from m2f.errors import M2FError
from m2f.preprocess import Preprocessing
from m2f.settings import INSTANCE_KEYS, Settings
from m2f_export import repository_place, repository_writer
from m2f_export.deploy_config import read_deploy_config
from m2f_export.engine import Profile
from m2f_export.export_errors import ExportError
from m2f_export.graph import export_onnx, run_torch, with_input
from m2f_export.half_masks import logits_types, with_half_masks
from m2f_export.head import InstanceHead, attach_head
from m2f_export.ladder import EXACT, HALF, Ladder, Logits, Sample, check_batches, read_samples, run_onnx
from m2f_export.onnx_files import INPUT, load_onnx
from m2f_export.precision import Precision, convert, rounded
from m2f_export.rewrite import rewritten
from m2f_export.served_engine import build_compared, engine_profile
from m2f_export.sources.base import Source
from m2f_export.sources.recognise import ONNX, recognise
from m2f_export.stated_classes import with_names, with_stuff

NOT_ON_CPU = "bf16"  # ONNX Runtime has no kernels for it on a CPU
SHIPPED_THRESHOLD = 0.5  # without a deploy config: mmdetection's own threshold, 0, keeps a hundred instances an image

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export, and how.

    Attributes:
        model: an mmdetection configuration, or a Hugging Face folder; with `describe`, an ONNX file.
        weights: the checkpoint of a configuration, or an ONNX file that was made from it; None for a folder.
        describe: the description of an ONNX file of any origin.
        task: the task of a Hugging Face OneFormer: `instance`, `panoptic` or `semantic`.
        classes: text file of the class names, one a line; None: what the source says.
        stuff: names or indices of the stuff classes, comma-separated or a JSON list; None: what the source says.
        deploy_config: MMDeploy's deploy config; the attributes below override its values.
        half_masks: whether the graph gives out its mask logits in half precision.
        layout: layout of the graph's input: `uint8_hwc` or `float32_chw`; a given ONNX keeps its own.
        size: fixed height and width of the input; None: both stay free.
        precision: `fp32`, `fp16` or `bf16`; None: the deploy config's, else fp32.
        head: masks of the graph that includes its head, `full` or `stride4`; None: no such graph.
        engine: whether to build a TensorRT engine too.
        target: the TensorRT version, or the Triton container, that will load the engine.
        timing_cache: file of TensorRT's measured kernel times, read if it exists and written afterwards.
        images: pictures to compare the steps on; empty: random pictures.
        tolerance: largest mean difference of a logit between two float32 steps; None: `ladder.EXACT.mean`.
        name: name of the public ensemble in the repository; the other models begin with it.
    """

    model: Path
    weights: Path | None = None
    describe: Path | None = None
    task: str | None = None
    classes: Path | None = None
    stuff: str | None = None
    deploy_config: Path | None = None
    half_masks: bool = False
    layout: str = "uint8_hwc"
    size: tuple[int, int] | None = None
    precision: Precision | None = None
    head: str | None = None
    engine: bool = False
    target: str | None = None
    timing_cache: Path | None = None
    images: tuple[Path, ...] = ()
    tolerance: float | None = None
    name: str = PUBLIC_MODEL

    @property
    def given_graph(self) -> Path | None:
        """The ONNX file, if one is given: then there is nothing to trace."""
        if self.describe:
            return self.model
        return self.weights if self.weights and self.weights.suffix == ONNX else None


def export_repository(request: ExportRequest, target: Path, say: Say) -> dict[str, Any]:
    """Export a model and add it to the repository at `target`.

    Args:
        request: what to export.
        target: the repository, which is made if it does not exist. After all checks have passed, the models replace
            those of an earlier export of the same name; all else in the repository stays as it is.
        say: receives a line for each step.

    Returns:
        The report, as it is saved in `NAME/export.json`.

    Raises:
        ExportError: the request is not valid, or a step drifts from the step before; nothing is replaced.
    """
    if request.head and request.precision == NOT_ON_CPU:
        raise ExportError(f"a graph with its head in {NOT_ON_CPU} cannot be compared here: give fp32 or fp16")
    if (request.target or request.timing_cache) and not request.engine:
        raise ExportError("a target and a timing cache are for an engine: add --engine")
    repository_writer.check_name(request.name)
    export = _Export(request, say)
    name, models = request.name, models_of(request.name, head=request.head is not None)
    with repository_place.staged(target, models) as stage:
        folder = repository_writer.copy_template(stage, name)
        export.make_onnx(folder / "model.onnx")
        head_folder = repository_writer.copy_head(stage, name, masks=request.head) if request.head else None
        repository_writer.configure(stage, name, export.ladder.source)
        if request.head and head_folder:
            with export.step(f"head kept ({request.head})"):
                export.add_head(folder, head_folder, request.head)
        types = export.halve_masks(folder / "model.onnx")
        repository_writer.set_logits_types(stage, name, types)
        repository_writer.set_instances(stage, name, folder / "model.onnx")
        built = None
        if request.engine:
            with export.step("TensorRT"):
                built = export.add_engine(folder)
        if request.precision == NOT_ON_CPU:
            say(
                f"{NOT_ON_CPU} is not compared through Triton: this graph is for a GPU. For a processor with AMX "
                "export fp32 and set the engine's parameter 'precision' to bfloat16"
            )
        else:
            with export.step("Triton"):
                export.compare_served(stage)
        report = {"name": name, "models": sorted(models), **export.report(), "engine": built}
        (stage / name / repository_place.REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def export_graph(request: ExportRequest, target: Path, say: Say) -> dict[str, Any]:
    """Export a model's ONNX graph alone.

    Args:
        request: what to export.
        target: the ONNX file to write.
        say: receives a line for each step.

    Returns:
        The report.

    Raises:
        ExportError: the request is not valid or asks for more than a graph, or a step drifts from the step before;
            nothing is written.
    """
    if request.head or request.engine or request.name != PUBLIC_MODEL:
        raise ExportError("a head, an engine and a name are for a repository: give --repository in place of --onnx")
    if not target.parent.is_dir():
        raise ExportError(f"{target.parent}: no such folder")
    export = _Export(request, say)
    draft = target.with_suffix(".draft.onnx")
    try:
        export.make_onnx(draft)
        export.halve_masks(draft)
        draft.replace(target)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
    return export.report()


def read_source(request: ExportRequest) -> Source:
    """Read the checkpoint, or only its description if the weights are an ONNX graph.

    Raises:
        ExportError: a file is missing or cannot be used; the message names the file.
    """
    if request.describe:
        from m2f_export.sources.described_onnx import describe_onnx  # noqa: PLC0415 (torch takes seconds to import)

        if request.weights:
            raise ExportError(f"--describe is for an ONNX file alone: {request.weights} is one too many")
        if request.task:
            raise ExportError("--task is for a Hugging Face OneFormer; a given graph has its task: leave it out")
        return describe_onnx(request.model, request.describe)
    kind = recognise(request.model, request.weights)
    if kind == "Hugging Face":
        from m2f_export.sources.huggingface import load_huggingface  # noqa: PLC0415 (a second to import)

        return load_huggingface(request.model, request.task)
    if request.task:
        raise ExportError(f"--task is for a Hugging Face OneFormer; {request.model} is of {kind}: leave it out")
    if kind == "detectron2":
        from m2f_export.sources.detectron2 import describe_detectron2, load_detectron2  # noqa: PLC0415

        assert request.weights is not None  # else a folder
        described = request.weights.suffix == ONNX
        return describe_detectron2(request.model) if described else load_detectron2(request.model, request.weights)
    from m2f_export.sources.mmdetection import describe_mmdet, load_mmdet  # noqa: PLC0415 (several seconds to import)

    assert request.weights is not None  # else a folder
    return describe_mmdet(request.model) if kind == "ONNX" else load_mmdet(request.model, request.weights)


class _Export:
    """One run of an export: its request, its steps so far, and the ladder that its artefacts climb."""

    ladder: Ladder  # from `make_onnx` on

    def __init__(self, request: ExportRequest, say: Say) -> None:
        self.request, self.say = request, say
        self.deploy = read_deploy_config(request.deploy_config) if request.deploy_config else None
        self.steps: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step and report it."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        # the peak of the whole process so far: the kernel keeps no other
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.steps.append({"step": name, "seconds": round(seconds, 2), "peak_memory_mib": round(peak)})
        self.say(f"{name}: {seconds:.1f} s")

    def make_onnx(self, output: Path) -> None:
        """Write the graph in the wanted precision, compared up to there."""
        request, deploy = self.request, self.deploy
        if request.size and (graph := request.given_graph):
            raise ExportError(f"{graph} has its own input size: --size is for a graph that is made here")
        precision = request.precision
        if deploy:
            precision = precision or ("fp16" if deploy.fp16 else None)
            if deploy.ignored:
                self.say(f"{request.deploy_config}: these keys are ignored: {', '.join(deploy.ignored)}")
            if not deploy.settings.export_postprocess_mask:
                self.say(f"{request.deploy_config}: export_postprocess_mask is false: rle and masks will be empty")
        with self.step("read"):
            source = self._read()
        self._adopt(source, output) if source.network is None else self._trace(source, output)
        with self.step("batches against one by one"):
            check_batches(output, self.ladder.source.preprocessing)
        if precision not in (None, "fp32"):
            with self.step(precision):
                self._convert(output, precision)

    def _read(self) -> Source:
        """Read the model, with what the request and the deploy config state in its place."""
        request = self.request
        source = read_source(request)
        if request.classes:
            source = with_names(source, request.classes)
        if request.stuff is not None:
            source = with_stuff(source, request.stuff)
        own = source.settings
        if not source.states_threshold:
            own = replace(own, score_threshold=SHIPPED_THRESHOLD)
        for note in source.notes:
            self.say(note)
        if not source.facts.class_names:
            self.say(f"{request.model} does not name its classes: they are numbers, unless --classes FILE names them")
        if source.facts.thing_classes is None:
            self.say(f"{request.model} does not say which classes are stuff: all are served as things")
        return replace(source, settings=self.deploy.settings_for(own) if self.deploy else own)

    def _trace(self, source: Source, output: Path) -> None:
        request = self.request
        size = request.size or (self.deploy.input_shape if self.deploy else None)
        source = with_input(source, layout=request.layout, size=size)
        self._say_how_exact(source.preprocessing)
        self.ladder = Ladder(source, read_samples(source, request.images))
        with self.step("ONNX"):
            graph = export_onnx(source, output)
        with self.step("PyTorch"):
            self.ladder.climb("PyTorch", run_torch(graph))
        with self.step("ONNX Runtime"):
            tolerance = replace(EXACT, mean=request.tolerance) if request.tolerance else EXACT
            self.ladder.climb("ONNX Runtime", run_onnx(output), tolerance)

    def _say_how_exact(self, preprocessing: Preprocessing) -> None:
        model = self.request.model
        if preprocessing.layout != self.request.layout:
            self.say(f"{model} pads with {preprocessing.float_pad_value}, which is no pixel: the input is float32_chw")
        elif preprocessing.float_resize and preprocessing.layout == "uint8_hwc":
            self.say(
                f"{model} resizes floats (to_float32), a uint8 input holds whole levels: --layout float32_chw is exact"
            )

    def _adopt(self, source: Source, output: Path) -> None:
        from m2f_export.sources.onnx_model import adopt_onnx  # noqa: PLC0415

        graph = self.request.given_graph
        assert graph is not None  # else the source has a network
        with self.step("ONNX"):
            source = adopt_onnx(graph, source, output)
        self.ladder = Ladder(source, read_samples(source, self.request.images))
        with self.step("ONNX Runtime"):
            self.ladder.climb("ONNX Runtime", run_onnx(output))
        given = load_onnx(output)
        faster = rewritten(given)
        if faster is not given:
            with self.step("rewritten"):
                onnx.save(faster, output)
                self.ladder.climb("rewritten", run_onnx(output))

    def _convert(self, output: Path, precision: Precision) -> None:
        half = convert(load_onnx(output), precision)
        onnx.save(half, output)
        # rounded as a device rounds: by itself ONNX Runtime's CPU computes most of the graph in float32
        self.ladder.climb(precision, run_onnx(rounded(half).SerializeToString()), HALF)
        if precision != NOT_ON_CPU:
            self.ladder.climb(f"{precision}, CPU", run_onnx(output), HALF)

    def halve_masks(self, output: Path) -> dict[str, str]:
        """Round the mask logits of a graph, if wanted; return the types of its logits (`logits_types`)."""
        model = load_onnx(output)
        if self.request.half_masks:
            with self.step("half masks"):
                model = with_half_masks(model)
                onnx.save(model, output)
                if self.request.precision != NOT_ON_CPU:
                    self.ladder.climb("half masks", run_onnx(output), HALF)
        return logits_types(model)

    def add_head(self, folder: Path, head_folder: Path, masks: str) -> None:
        """Add the graph with its head to the graph without it, compared with the Python postprocess."""
        source = self.ladder.source
        settings = source.settings
        limits = [limit for limit in (settings.pre_top_k, settings.keep_top_k) if limit > 0]
        known = Settings(score_threshold=settings.score_threshold, pre_top_k=min(limits, default=100))
        # the graph computes the nearest settings that it knows: say which keys differ
        ignored = [key for key in INSTANCE_KEYS if getattr(settings, key) != getattr(known, key)]
        if ignored:
            self.say(f"the head in the graph knows score_threshold and one top_k; not: {', '.join(ignored)}")
        engine = load_onnx(folder / "model.onnx")
        head = InstanceHead(
            top_k=known.pre_top_k, score_threshold=known.score_threshold, masks=masks,
            mask_stride=source.facts.mask_stride, thing_classes=source.facts.thing_classes,
        )  # fmt: skip
        path = head_folder / "model.onnx"
        onnx.save(attach_head(engine, head), path)
        self.ladder.check_head(path, known)

    def add_engine(self, folder: Path) -> dict[str, Any]:
        """Build the engine from the graph in a folder, and compare it with the graph where it can run."""
        made = build_compared(
            folder / "model.onnx",
            self.ladder.source,
            profile=self.profile(),
            samples=self.ladder.samples,
            target=self.request.target,
            timing_cache=self.request.timing_cache,
            workspace=self.deploy.max_workspace_size or None if self.deploy else None,
            say=self.say,
        )
        if made["target_message"]:
            self.say(made["target_message"])
        return made

    def profile(self) -> Profile:
        """Return the input sizes that an engine of this export is built for."""
        return engine_profile(self.ladder.source.preprocessing, self.deploy.shapes.get(INPUT) if self.deploy else None)

    def compare_served(self, stage: Path) -> None:
        """Serve the repository and compare its answers, if a server is installed."""
        from m2f_client import Client  # noqa: PLC0415 (the client's and the server's extras may not be installed)
        from m2f_server.launch import serve  # noqa: PLC0415
        from m2f_server.serve_errors import ServerNotFoundError  # noqa: PLC0415

        def ask(sample: Sample) -> tuple[Logits, Found]:
            outputs = (*STRUCTURED_OUTPUTS, *RAW_OUTPUTS)
            found = client.predict(
                sample.encoded, outputs=outputs, score_threshold=CONFIDENT, export_postprocess_mask=True
            )
            instances = Found(found.scores.tolist(), found.labels.tolist(), found.rle, found.size)
            return (found.cls_logits[None], found.mask_logits[None]), instances

        try:
            with (
                serve(model_repository=stage, config_name="cpu", http_port=0, grpc_port=0, metrics_port=0) as server,
                Client(f"grpc://{server.grpc_url}", model=self.request.name) as client,
            ):
                self.ladder.finish("Triton", ask)
        except ServerNotFoundError as error:
            self.say(f"not compared through Triton: {error}")
        except ExportError:
            raise
        except M2FError as error:  # of the server or of its client
            raise ExportError(f"Triton does not serve the repository: {error}") from error

    def report(self) -> dict[str, Any]:
        """Return the report, as JSON has it."""
        source = self.ladder.source
        facts, things = source.facts, source.facts.thing_classes
        return {
            "source": source.kind,
            "classes": source.num_classes,
            "class_names": facts.class_names,
            "preprocessing": asdict(source.preprocessing),
            "settings": asdict(source.settings),
            "thing_classes": None if things is None else sorted(things),
            "mask_stride": facts.mask_stride,
            "profile": asdict(self.profile()),
            "comparison": self.ladder.report(),
            "steps": self.steps,
        }
