"""From a checkpoint to a repository that Triton serves: the steps, each checked before the next begins."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from m2f.contract import RAW_OUTPUTS, STRUCTURED_OUTPUTS
from m2f.limits import MAX_BATCH_SIZE
from m2f.postprocess import Instances
from m2f.settings import KEYS, PANOPTIC_KEYS, Settings
from m2f_export.deploy_config import DeployConfig, read_deploy_config
from m2f_export.engine import TENSORRT_RTX, Profile, build_engine, check_target
from m2f_export.export_errors import ExportError
from m2f_export.graph import export_onnx, with_input
from m2f_export.head import InstanceHead, attach_head
from m2f_export.ladder import (
    CONFIDENT,
    EXACT,
    HALF,
    Ladder,
    Logits,
    Sample,
    check_batches,
    read_samples,
    run_onnx,
    run_torch,
)
from m2f_export.onnx_files import INPUT, load_onnx
from m2f_export.precision import Precision, convert, rounded
from m2f_export.repository_writer import (
    ENGINE,
    HEAD_ENGINE,
    REPORT,
    configure,
    copy_head,
    copy_template,
    staged,
    warm_up_size,
)
from m2f_export.sources.base import Source

NOT_ON_CPU = "bf16"  # ONNX Runtime has no kernels for it there
SHIPPED_THRESHOLD = 0.5  # where no deploy config says: mmdetection's own, 0, keeps a hundred instances an image


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export, and how.

    Attributes:
        model: an mmdetection configuration, or a Hugging Face folder.
        weights: the checkpoint of a configuration, or an ONNX file that was made of it; None for a folder.
        deploy_config: MMDeploy's; what it says holds where nothing below says otherwise.
        layout: of the graph's input: `uint8_hwc` or `float32_chw`; a given ONNX has its own.
        size: fixed height and width of the input; None: free.
        precision: `fp32`, `fp16`, `bf16`; None: as the deploy config, else fp32.
        head: masks of the graph that keeps its head, `full` or `stride4`; None: no such graph.
        engine: build a TensorRT engine too.
        target: the TensorRT version, or the Triton container, that the engine is for.
        timing_cache: file of TensorRT's measured kernel times, read where it exists and written afterwards.
        images: to compare on; none: random ones.
        tolerance: mean difference of a logit between two float32 steps; None: `ladder.EXACT`'s.
    """

    model: Path
    weights: Path | None = None
    deploy_config: Path | None = None
    layout: str = "uint8_hwc"
    size: tuple[int, int] | None = None
    precision: Precision | None = None
    head: str | None = None
    engine: bool = False
    target: str | None = None
    timing_cache: Path | None = None
    images: tuple[Path, ...] = ()
    tolerance: float | None = None


@dataclass
class Progress:
    """What has been done: told as it happens, kept for the report."""

    say: Callable[[str], None]
    steps: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step, and say so when it is done."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        # of the whole process so far: the kernel keeps no other
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.steps.append({"step": name, "seconds": round(seconds, 2), "peak_memory_mib": round(peak)})
        self.say(f"{name}: {seconds:.1f} s")


def export_repository(request: ExportRequest, target: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Export a model and put a repository that serves it in place of `target`.

    Args:
        request: what to export.
        target: the folder to make; an earlier export there keeps serving until the new one has passed.
        say: told of each step.

    Returns:
        The report, as it is saved in the repository's `export.json`.

    Raises:
        ExportError: something is wrong with the request, or a step drifts from the one before; nothing is replaced.
    """
    if request.head and request.precision == NOT_ON_CPU:
        raise ExportError(f"a graph with its head in {NOT_ON_CPU} cannot be compared here: give fp32 or fp16")
    if (request.target or request.timing_cache) and not request.engine:
        raise ExportError("a target and a timing cache are an engine's: add --engine")
    progress = Progress(say)
    with staged(target) as stage:
        folder = copy_template(stage)
        deploy = _deploy_config(request)
        ladder = _make_onnx(request, deploy, folder / "model.onnx", progress)
        if request.head:
            copy_head(stage, masks=request.head)
        configure(stage, ladder.source)
        if request.head:
            with progress.step(f"head kept ({request.head})"):
                _add_head(stage, ladder, request.head, progress)
        built = None
        if request.engine:
            with progress.step("TensorRT"):
                built = _add_engine(folder, ladder.source, request, deploy, progress)
        if request.precision == NOT_ON_CPU:
            say(f"{NOT_ON_CPU} is not compared through Triton: ONNX Runtime computes it on a GPU only")
        else:
            with progress.step("Triton"):
                _compare_served(stage, ladder, progress)
        report = {**_report(ladder, progress), "engine": built}
        (stage / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def export_graph(request: ExportRequest, target: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Export a model's ONNX graph alone.

    Raises:
        ExportError: as `export_repository`; also where the request asks for more than a graph.
    """
    if request.head or request.engine:
        raise ExportError("a head or an engine goes into a repository: give one in place of the ONNX file")
    progress = Progress(say)
    if not target.parent.is_dir():
        raise ExportError(f"{target.parent}: no such folder")
    draft = target.with_suffix(".draft.onnx")
    try:
        ladder = _make_onnx(request, _deploy_config(request), draft, progress)
        draft.replace(target)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
    return _report(ladder, progress)


def read_source(request: ExportRequest) -> Source:
    """Read the checkpoint, or only its description where the graph is given.

    Raises:
        ExportError: a file is missing, or is not what it should be.
    """
    if request.model.is_dir():
        if request.weights:
            raise ExportError(f"{request.model} is a folder and holds its weights: {request.weights} is one too many")
        from m2f_export.sources.huggingface import load_huggingface  # noqa: PLC0415 (a second to import)

        return load_huggingface(request.model)
    from m2f_export.sources.mmdetection import describe_mmdet, load_mmdet  # noqa: PLC0415 (several seconds to import)

    if request.weights is None:
        raise ExportError(f"{request.model} needs its checkpoint: m2f export CONFIG CHECKPOINT")
    if request.weights.suffix == ".onnx":
        return describe_mmdet(request.model)
    return load_mmdet(request.model, request.weights)


def _deploy_config(request: ExportRequest) -> DeployConfig | None:
    return read_deploy_config(request.deploy_config) if request.deploy_config else None


def _make_onnx(request: ExportRequest, deploy: DeployConfig | None, output: Path, progress: Progress) -> Ladder:
    """Write the graph in the precision asked for; return the ladder up to it."""
    if request.size and request.weights and request.weights.suffix == ".onnx":
        raise ExportError(f"{request.weights} has its own input size: --size is for a graph that is made here")
    if deploy:
        precision = request.precision or ("fp16" if deploy.fp16 else None)
        request = replace(request, size=request.size or deploy.input_shape, precision=precision)
        if deploy.ignored:
            progress.say(f"{request.deploy_config}: nothing reads {', '.join(deploy.ignored)}")
        if not deploy.settings.export_postprocess_mask:
            progress.say(f"{request.deploy_config}: export_postprocess_mask is false: rle and masks will be empty")
    with progress.step("read"):
        source = read_source(request)
        own = replace(source.settings, score_threshold=SHIPPED_THRESHOLD)
        source = replace(source, settings=_with_panoptic_keys(deploy.settings, own) if deploy else own)
        if source.thing_classes is None:
            progress.say(f"{request.model} does not say which classes are stuff: all are served as things")
    make = _adopt if source.network is None else _trace
    ladder = make(request, source, output, progress)
    with progress.step("batches against one by one"):
        check_batches(output, ladder.source.preprocessing)
    if request.precision not in (None, "fp32"):
        with progress.step(request.precision):
            half = convert(load_onnx(output), request.precision)
            onnx.save(half, output)
            # Rounded as a device rounds it: ONNX Runtime on a processor takes most of it out again.
            ladder.climb(request.precision, run_onnx(rounded(half).SerializeToString()), HALF)
            if request.precision != NOT_ON_CPU:
                ladder.climb(f"{request.precision}, CPU", run_onnx(output), HALF)
    return ladder


def _with_panoptic_keys(deploy: Settings, own: Settings) -> Settings:
    """MMDeploy has no keys for panoptic segmentation: where its config adds none, the model's own hold."""
    silent = [key for key in PANOPTIC_KEYS if getattr(deploy, key) == getattr(Settings(), key)]
    return replace(deploy, **{key: getattr(own, key) for key in silent})


def _trace(request: ExportRequest, source: Source, output: Path, progress: Progress) -> Ladder:
    source = with_input(source, layout=request.layout, size=request.size)
    with progress.step("ONNX"):
        graph = export_onnx(source, output)
    ladder = Ladder(source, read_samples(source, request.images))
    with progress.step("PyTorch"):
        ladder.climb("PyTorch", run_torch(graph))
    with progress.step("ONNX Runtime"):
        tolerance = replace(EXACT, mean=request.tolerance) if request.tolerance else EXACT
        ladder.climb("ONNX Runtime", run_onnx(output), tolerance)
    return ladder


def _adopt(request: ExportRequest, source: Source, output: Path, progress: Progress) -> Ladder:
    from m2f_export.sources.onnx_model import adopt_onnx  # noqa: PLC0415

    assert request.weights is not None  # what made the source one without a network
    with progress.step("ONNX"):
        source = adopt_onnx(request.weights, source, output)
    ladder = Ladder(source, read_samples(source, request.images))
    with progress.step("ONNX Runtime"):
        ladder.climb("ONNX Runtime", run_onnx(output))
    return ladder


def _add_head(stage: Path, ladder: Ladder, masks: str, progress: Progress) -> None:
    """Add the models that answer from a graph with its head, held against the Python postprocess."""
    settings = ladder.source.settings
    limits = [limit for limit in (settings.pre_top_k, settings.keep_top_k) if limit > 0]
    known = Settings(score_threshold=settings.score_threshold, pre_top_k=min(limits, default=100))
    # What is computed for the nearest neighbour of these settings must not pass for them.
    keys = [key for key in KEYS if key not in PANOPTIC_KEYS]
    ignored = [key for key in keys if getattr(settings, key) != getattr(known, key)]
    if ignored:
        progress.say(f"the head in the graph knows score_threshold and one top_k; not: {', '.join(ignored)}")
    engine = load_onnx(stage / ENGINE / "1" / "model.onnx")
    head = InstanceHead(
        top_k=known.pre_top_k, score_threshold=known.score_threshold, masks=masks,
        mask_stride=ladder.source.mask_stride, thing_classes=ladder.source.thing_classes,
    )  # fmt: skip
    path = stage / HEAD_ENGINE / "1" / "model.onnx"
    onnx.save(attach_head(engine, head), path)
    ladder.check_head(path, known)


def _add_engine(
    folder: Path, source: Source, request: ExportRequest, deploy: DeployConfig | None, progress: Progress
) -> dict[str, Any]:
    """Build the engine from the graph beside it; a plan of TensorRT-RTX gets a name that Triton does not load."""
    plan = folder / "model.plan"
    deploy = deploy or DeployConfig()
    built = build_engine(
        load_onnx(folder / "model.onnx"),
        plan,
        profile=_profile(source, deploy),
        timing_cache=request.timing_cache,
        workspace=deploy.max_workspace_size or None,
    )
    if built.backend == TENSORRT_RTX:
        plan.rename(folder / "model.rtx.plan")
    message = None
    if request.target or built.backend == TENSORRT_RTX:
        message = check_target(built.backend, built.version, request.target or "")
    if message:
        progress.say(message)
    return {**asdict(built), "target": request.target, "target_message": message}


def _profile(source: Source, deploy: DeployConfig) -> Profile:
    """The deploy config's sizes of the input; else batches up to the server's, and every size that images can have."""
    fixed = source.preprocessing.input_size is not None
    stated = deploy.shapes.get(INPUT)
    if stated:  # MMDeploy's are those of its own input, [N, 3, H, W]
        batch, _, height, width = zip(stated.minimum, stated.optimum, stated.maximum, strict=True)
        return Profile(batch=batch, height=None if fixed else height, width=None if fixed else width)
    batch = (1, 1, MAX_BATCH_SIZE)
    if fixed:
        return Profile(batch=batch)
    usual_height, usual_width = warm_up_size(source.preprocessing)
    longest, divisor = max(usual_height, usual_width), source.preprocessing.pad_divisor
    return Profile(batch=batch, height=(divisor, usual_height, longest), width=(divisor, usual_width, longest))


def _compare_served(stage: Path, ladder: Ladder, progress: Progress) -> None:
    """Serve the repository and compare what it answers, where there is a server to do it."""
    from m2f_client import Client  # noqa: PLC0415 (the client's and the server's extras may not be installed)
    from m2f_server.launch import serve  # noqa: PLC0415
    from m2f_server.serve_errors import ServeError, ServerNotFoundError  # noqa: PLC0415

    def ask(sample: Sample) -> tuple[Logits, Instances]:
        found = client.predict(
            sample.encoded,
            outputs=(*STRUCTURED_OUTPUTS, *RAW_OUTPUTS),
            score_threshold=CONFIDENT,
            export_postprocess_mask=True,
        )
        instances = Instances(
            scores=found.scores, labels=found.labels, boxes=found.boxes, areas=found.areas, queries=found.queries,
            rle=found.rle, size_hw=found.size,
        )  # fmt: skip
        return (found.cls_logits[None], found.mask_logits[None]), instances

    try:
        with (
            serve(model_repository=stage, config_name="cpu", http_port=0, grpc_port=0, metrics_port=0) as server,
            Client(f"grpc://{server.grpc_url}") as client,
        ):
            ladder.finish("Triton", ask)
    except ServerNotFoundError as error:
        progress.say(f"not compared through Triton: {error}")
    except ServeError as error:
        raise ExportError(f"Triton does not serve the repository: {error}") from error


def _report(ladder: Ladder, progress: Progress) -> dict[str, Any]:
    source = ladder.source
    return {
        "source": source.kind,
        "classes": source.num_classes,
        "class_names": source.class_names,
        "preprocessing": asdict(source.preprocessing),
        "settings": asdict(source.settings),
        "thing_classes": source.thing_classes,
        "mask_stride": source.mask_stride,
        "comparison": ladder.report(),
        "steps": progress.steps,
    }
