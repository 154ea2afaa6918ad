"""Build the TensorRT engine of an exported model, where it will run: from the repository's ONNX, without PyTorch.

The engine is compared with the ONNX on pictures before it is put in place.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from m2f.contract import model_name
from m2f.errors import InputError
from m2f.limits import MAX_BATCH_SIZE
from m2f.model_facts import ModelFacts
from m2f.preprocess import Preprocessing
from m2f.settings import Settings
from m2f_export import repository_writer
from m2f_export.deploy_config import ShapeRange
from m2f_export.engine import TENSORRT, TENSORRT_RTX, Profile, build_engine, check_target
from m2f_export.export_errors import ExportError, reason
from m2f_export.files import read_object
from m2f_export.ladder import EXACT, HALF, Ladder, Logits, Sample, read_samples, run_onnx
from m2f_export.onnx_files import INPUT, OUTPUTS, is_half, load_onnx
from m2f_export.plan_runner import PlanRunner
from m2f_export.precision import rounded
from m2f_export.repository_place import REPORT, locked
from m2f_export.sources.base import Source

PLAN, RTX_PLAN = "model.plan", "model.rtx.plan"  # Triton loads the first name only


def build_in_repository(
    repository: Path,
    *,
    name: str | None,
    images: Sequence[Path],
    target: str | None,
    timing_cache: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Build the engine of an export, compare it with the export's ONNX, and put it in place.

    Args:
        repository: the folder of models.
        name: name of the export; None: the only one there.
        images: pictures to compare on; empty: those of the export that are still there, else random pictures.
        target: the TensorRT version, or the Triton container, that will load the engine; None: the one that builds.
        timing_cache: file of TensorRT's measured kernel times; None: `timing.cache` beside the engine's configuration.
        say: receives a line for each step.

    Returns:
        What was built, as it is saved in `NAME/export.json` under `engine`.

    Raises:
        ExportError: the repository has no such export, the engine cannot be built, or it drifts from the ONNX; nothing
            is replaced.
    """
    name = _export_name(repository, name)
    path, model = repository / name / REPORT, repository / model_name(name, "engine")
    if not model.is_dir():
        raise ExportError(f"{model}: no such folder, though {path} tells of its export; export the model again")
    try:
        with locked(model, waits=lambda: say(f"waiting for another command that changes {model}")):
            report = read_object(path)  # an export may have replaced it during the wait
            source = _source(report, path)
            graph = _newest_graph(model)
            profile = _profile(report, path) or engine_profile(source.preprocessing)
            cache = timing_cache or model / "timing.cache"
            say(trtexec_line(graph, profile, source.preprocessing, cache))
            made = build_compared(
                graph,
                source,
                profile=profile,
                samples=read_samples(source, images or _pictures(report)),
                target=target,
                timing_cache=cache,
                say=say,
            )
            _write_report(path, {**report, "engine": made})
    except OSError as error:
        raise ExportError(f"{error.filename or model} cannot be used: {error.strerror}") from error
    return made


def build_compared(
    graph: Path,
    source: Source,
    *,
    profile: Profile,
    samples: Sequence[Sample],
    target: str | None,
    timing_cache: Path | None,
    say: Callable[[str], None],
    workspace: int | None = None,
) -> dict[str, Any]:
    """Build the engine of a graph beside it, and compare it with the graph where it can run.

    Args:
        graph: the ONNX file.
        source: the model's preprocessing, settings and facts.
        profile: the input sizes that the engine takes.
        samples: the pictures to compare on.
        target: as `build_in_repository`.
        timing_cache: file of TensorRT's measured kernel times, read if it exists and written afterwards; None: no file.
        say: receives a line for each step.
        workspace: bytes of device memory that a layer may use; None: all there is.

    Returns:
        What was built, and how it compares.

    Raises:
        ExportError: the engine cannot be built, or it drifts from the graph; an earlier engine stays.
    """
    if target:
        check_target(TENSORRT, "", target)  # refuses what is no target, before minutes of building
    draft = graph.with_name(f".{PLAN}")
    try:
        built = build_engine(load_onnx(graph), draft, profile=profile, timing_cache=timing_cache, workspace=workspace)
        say(f"{built.backend} {built.version}: built in {built.seconds:.0f} s, {built.size / 1e6:.0f} MB")
        runner = _runner(draft, built.backend, say)
        comparison = _compare(runner, graph, source, samples, built.backend) if runner else None
        rtx = built.backend == TENSORRT_RTX
        draft.replace(graph.with_name(RTX_PLAN if rtx else PLAN))
    finally:
        draft.unlink(missing_ok=True)
    message = check_target(built.backend, built.version, target or "") if target or rtx else None
    return {
        **asdict(built), "profile": asdict(profile), "target": target, "target_message": message,
        "comparison": comparison,
    }  # fmt: skip


def engine_profile(preprocessing: Preprocessing, stated: ShapeRange | None = None) -> Profile:
    """Return the input sizes that an engine is built for.

    Args:
        preprocessing: the graph's input, which may have a fixed size.
        stated: the deploy config's shapes of the input; None: batches up to the server's limit, and every size that
            the preprocessing can make of an image.
    """
    fixed = preprocessing.input_size is not None
    if stated:  # MMDeploy's input is [N, 3, H, W]
        batch, _, height, width = zip(stated.minimum, stated.optimum, stated.maximum, strict=True)
        return Profile(batch=batch, height=None if fixed else height, width=None if fixed else width)
    batch = (1, 1, MAX_BATCH_SIZE)
    if fixed:
        return Profile(batch=batch)
    usual_height, usual_width = repository_writer.warm_up_size(preprocessing)
    longest, divisor = max(usual_height, usual_width), preprocessing.pad_divisor
    return Profile(batch=batch, height=(divisor, usual_height, longest), width=(divisor, usual_width, longest))


def trtexec_line(graph: Path, profile: Profile, preprocessing: Preprocessing, cache: Path) -> str:
    """Return the command of TensorRT's own tool that builds the same engine."""
    fixed = preprocessing.input_size or (0, 0)
    heights, widths = profile.height or (fixed[0],) * 3, profile.width or (fixed[1],) * 3
    arguments = [f"--onnx={graph}", f"--saveEngine={graph.with_name(PLAN)}"]
    for index, kind in enumerate(("min", "opt", "max")):
        sides = (heights[index], widths[index])
        hwc = preprocessing.layout == "uint8_hwc"
        shape = (*sides, preprocessing.channels) if hwc else (preprocessing.channels, *sides)
        arguments.append(f"--{kind}Shapes={INPUT}:{'x'.join(map(str, (profile.batch[index], *shape)))}")
    return shlex.join(["trtexec", *arguments, "--stronglyTyped", "--noTF32", f"--timingCacheFile={cache}"])


def _export_name(repository: Path, name: str | None) -> str:
    """Return the name of the export that was asked for, or of the only one."""
    names = sorted(path.parent.name for path in repository.glob(f"*/{REPORT}"))
    if not names:
        raise ExportError(_no_export(repository))
    if name is None and len(names) > 1:
        raise ExportError(f"{repository} has several exports: give --model with one of {', '.join(names)}")
    if name is not None and name not in names:
        raise ExportError(f"{repository} has no export {name!r}; there are: {', '.join(names)}")
    return name or names[0]


def _no_export(repository: Path) -> str:
    """Return why a folder has no export to build an engine for, and what to do."""
    if not repository.is_dir():
        return f"{repository}: no such folder"
    if (repository / REPORT).is_file():
        return (
            f"{repository} holds an export of an earlier version: run the m2f export command that made it again, with "
            f"--repository {repository}"
        )
    lacks = f"{repository}: no export in it (a folder with {REPORT}); m2f export makes one"
    if any(repository.glob("*/config.pbtxt")):
        lacks += ". Its models were not made by m2f export, so nothing says what their engine must answer"
    return lacks


def _newest_graph(model: Path) -> Path:
    """Return the ONNX of an engine's newest version, which is the one that Triton serves."""
    versions = [path for path in model.iterdir() if path.name.isdecimal() and path.is_dir()]
    newest = max(versions, key=lambda path: int(path.name), default=model / "1")
    graph = newest / "model.onnx"
    if not graph.is_file():
        raise ExportError(
            f"{graph}: no such file, and Triton serves the newest version: m2f rollout replaces a plan by another one"
        )
    return graph


def _source(report: dict[str, Any], path: Path) -> Source:
    """Return what an export's report says of its model."""
    try:
        things = report["thing_classes"]
        return Source(
            kind=report["source"],
            network=None,
            preprocessing=Preprocessing(**_tuples(report["preprocessing"])),
            num_classes=report["classes"],
            facts=ModelFacts(
                class_names=tuple(report["class_names"]),
                thing_classes=None if things is None else frozenset(things),
                mask_stride=report["mask_stride"],
            ),
            settings=Settings(**_tuples(report["settings"])),
        )
    except (KeyError, TypeError, InputError) as error:
        raise _not_a_report(path, error) from error


def _profile(report: dict[str, Any], path: Path) -> Profile | None:
    """Return the sizes that an export's report states; None if it states none."""
    try:
        return Profile(**_tuples(report["profile"])) if "profile" in report else None
    except (AttributeError, TypeError) as error:
        raise _not_a_report(path, error) from error


def _not_a_report(path: Path, error: Exception) -> ExportError:
    return ExportError(f"{path} is not what m2f export writes: {reason(error)}; export the model again")


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _pictures(report: dict[str, Any]) -> list[Path]:
    """Return the pictures that the export was compared on, as far as they are there."""
    return [path for path in map(Path, report.get("comparison", {}).get("images", ())) if path.is_file()]


def _runner(plan: Path, backend: str, say: Callable[[str], None]) -> PlanRunner | None:
    """Load an engine; None if TensorRT-RTX built it and it cannot run here."""
    try:
        return PlanRunner(plan)
    except ExportError as error:
        if backend != TENSORRT_RTX:  # TensorRT builds on a GPU only, so its engine must run
            raise
        say(f"not compared with the ONNX: {error}")
        return None


def _compare(
    runner: PlanRunner, graph: Path, source: Source, samples: Sequence[Sample], backend: str
) -> dict[str, Any]:
    """Compare an engine with its ONNX."""
    model = load_onnx(graph)
    half = is_half(model)
    ladder = Ladder(source, samples)
    # a half-precision graph as a device rounds it; ONNX Runtime's processor has no bfloat16
    ladder.climb("ONNX Runtime", run_onnx(_serialised(rounded(model)) if half else graph))
    ladder.climb(backend, _run_plan(runner), HALF if half else EXACT)
    return ladder.report()


def _serialised(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString())


def _run_plan(runner: PlanRunner) -> Callable[[Sample], Logits]:
    def run(sample: Sample) -> Logits:
        found = runner.run({INPUT: sample.pixels})
        return found[OUTPUTS[0]], found[OUTPUTS[1]]

    return run


def _write_report(path: Path, report: dict[str, Any]) -> None:
    draft = path.with_name(f".{path.name}")
    try:
        draft.write_text(json.dumps(report, indent=2) + "\n")
        draft.replace(path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
