"""Replace the engine of a running server without a failed request, after a check of the new engine.

The new engine is loaded as a candidate: beside the serving engine, under a name that no client uses. Both engines see
the same images. Only if they agree does the candidate become the next version of the engine. Triton then loads that
version, moves the ensembles to it between two requests, and lets the old version finish its requests.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2f.agreement import Agreement, Found, compare
from m2f.ensembles import Ensemble, read_ensemble
from m2f_backend.calls import CallError
from m2f_server.control import Control
from m2f_server.diagnose import one_line
from m2f_server.remains import OWNER_FILE, remove_candidates
from m2f_server.serve_errors import RolloutError
from m2f_server.tensors import Arrays, zeros
from m2f_server.triton_2_51 import without_warm_up

SAME_ENGINE = 0.99  # agreement of an engine with itself; TensorRT's kernels may round differently in each run
_STAGING = ".rollout"  # Triton ignores a folder whose name is no number
_INFER_TIMEOUT_S = 60.0
_SHAPES = ("img_shape", "ori_shape")
_LOGITS = ("cls_logits", "mask_logits")
_INSTANCES = ("scores", "labels", "rle", "size")
_PARAMETERS = {"score_threshold": 0.15}  # below `agreement.CONFIDENT`, so that no partner of an instance is cut off

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Model:
    """The model whose engine is replaced.

    Attributes:
        name: name of the public ensemble.
        preprocess: name of the step that makes the engine's input of an image.
        engine: name of the engine.
        postprocess: name of the step that makes instances of the engine's output.
    """

    name: str
    preprocess: str
    engine: str
    postprocess: str

    @property
    def candidate(self) -> str:
        """Name under which the new engine is loaded beside the serving engine."""
        return f"{self.engine}_candidate"


@dataclass(frozen=True)
class Rollout:
    """The result of a rollout.

    Attributes:
        model: name of the public ensemble whose engine was replaced.
        before: version that served before.
        version: version that serves now.
        agreement: comparison of the new engine's instances with the old engine's, on all images.
    """

    model: str
    before: int
    version: int
    agreement: Agreement


def roll_out(
    engine: Path,
    *,
    repository: Path,
    control: Control,
    images: Mapping[str, bytes],
    min_agreement: float,
    model: str | None = None,
    same_engine: float = SAME_ENGINE,
    say: Say = lambda _: None,
) -> Rollout:
    """Make a file the next version of the engine of a running server.

    Args:
        engine: the new `model.plan` or `model.onnx`.
        repository: the folder that the server serves. The new version is written to it.
        control: calls to the server.
        images: encoded images by name, on which the old and the new engine are compared.
        min_agreement: least agreement of the new engine with the old one, from 0 to 1. Use 0 for retrained weights.
        model: name of the public ensemble whose engine is replaced; None for the only one of the server.
        same_engine: least agreement, from 0 to 1, of the new version's answers to clients with the candidate's.
        say: called with a line of text before each step.

    Raises:
        RolloutError: the candidate was refused and the old version serves; the message says why.
        CallError: the server does not answer.
        InputError: an RLE of the server is invalid.
    """
    of = _find(control, model)
    if (repository / of.candidate).exists():
        raise RolloutError(f"{repository / of.candidate}: a rollout of {of.name} needs this name for its candidate")
    with _only_one(repository / of.engine) as folder:
        before = _serving_version(control, of.engine, folder)
        config = control.config(of.engine)
        files = _new_files(engine, folder / str(before), _engine_file(config))
        say(f"version {before} of {of.engine} serves; loading {engine} beside it")
        with _candidate(control, of.candidate, config, files):
            _warm_up(control, of.candidate, config)
            agreement, wanted = _judge(control, of, images)
        _refuse_difference(agreement, before, min_agreement)
        say(f"agreement {agreement.share:.4f} on {len(images)} images")
        version = _install(folder, files)
        try:
            _switch(control, of.engine, version)
            say(f"version {version} is loaded; checking the answers that clients get")
            _check_service(control, of.name, images, wanted, same_engine)
        except BaseException as error:  # also a Ctrl-C
            shutil.rmtree(folder / str(version), ignore_errors=True)
            if now := _take_back(control, of.engine, before):
                raise RolloutError(f"version {version} was refused ({error}); {now}") from error
            if not isinstance(error, RolloutError):
                raise
            raise RolloutError(f"version {version} was taken back, {before} serves again: {error}") from error
    return Rollout(model=of.name, before=before, version=version, agreement=agreement)


def _find(control: Control, name: str | None) -> _Model:
    """Return the model of this name, or the only one of the server."""
    loaded = sorted({model for model, _ in control.loaded()})
    ensembles = [ensemble for model in loaded if (ensemble := read_ensemble(control.config(model)))]
    models = {ensemble.name: found for ensemble in ensembles if ensemble.public and (found := _model(ensemble))}
    known = f"this server has {', '.join(models) or 'no model with an engine'}"
    if name is None:
        if len(models) != 1:
            raise RolloutError(f"{known}: choose one with --model")
        (name,) = models
    if name not in models:
        raise RolloutError(f"--model {name}: {known}")
    return models[name]


def _model(ensemble: Ensemble) -> _Model | None:
    """Return the steps of an ensemble that a rollout needs, or None if one is not there."""
    if ensemble.preprocess and ensemble.engine and ensemble.postprocess:
        return _Model(ensemble.name, ensemble.preprocess, ensemble.engine, ensemble.postprocess)
    return None


@contextmanager
def _only_one(folder: Path) -> Iterator[Path]:
    """Lock the engine's folder. The lock ends with this process, however that ends."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RolloutError(f"{folder}: {error.strerror}; --model-repository is the folder that is served") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    except BlockingIOError:
        raise RolloutError(f"{folder}: another rollout, or m2f engine, is under way") from None
    finally:
        os.close(descriptor)


def _serving_version(control: Control, engine: str, folder: Path) -> int:
    """Return the engine's version, which must be the newest one in the folder."""
    policy = control.config(engine).get("version_policy", {})
    if policy.get("latest", {}).get("num_versions", 1) != 1 or set(policy) - {"latest"}:
        raise RolloutError(
            f"{engine} has version_policy {policy}; a rollout needs Triton's default: the latest version"
        )
    serving = sorted(int(version) for name, version in control.loaded() if name == engine)
    newest = max(_versions(folder), default=0)
    if serving != [newest]:
        raise RolloutError(
            f"{folder}: its newest version is {newest}, but the server serves {serving}: remove what a killed rollout "
            "left there, or is it another folder?"
        )
    return newest


def _versions(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]


def _engine_file(config: Mapping[str, Any]) -> str:
    """Return the name of the engine's file; for the Python backend the model's code names it."""
    return "model.onnx" if config.get("backend") == "python" else str(config["default_model_filename"])


def _new_files(engine: Path, serving: Path, name: str) -> dict[str, Path]:
    """Return the files of the new version by name: the engine, and the code of the serving version if it has code."""
    if engine.suffix != Path(name).suffix:
        raise RolloutError(f"{engine}: the server runs a {name}; give a file that ends in {Path(name).suffix}")
    if not engine.is_file():
        raise RolloutError(f"{engine}: no such file")
    return {**{path.name: path for path in serving.glob("*.py")}, name: engine}


@contextmanager
def _candidate(control: Control, name: str, config: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[None]:
    """Load the candidate under its own name. Its files travel in the request, so none is left in the repository.

    Triton keeps a copy of them, and does not remove the copy if the candidate's process is killed. So a file in the
    copy tells whose it is.
    """
    own = without_warm_up({**config, "name": name})  # `_warm_up` does it instead
    with _load_errors():
        owner = f"{control.name()} {secrets.token_hex(8)}"
        contents = {f"1/{file}": path.read_bytes() for file, path in files.items()}
    try:
        with _load_errors():
            control.load(name, own, {**contents, OWNER_FILE: owner.encode()})
        yield
    finally:
        with suppress(CallError):
            control.unload(name)
        remove_candidates(owner)


@contextmanager
def _load_errors() -> Iterator[None]:
    try:
        yield
    except CallError as error:
        raise RolloutError(f"the candidate does not load: {one_line(str(error))}") from error
    except OSError as error:
        raise RolloutError(f"{error.filename}: {error.strerror}") from error


def _warm_up(control: Control, candidate: str, config: Mapping[str, Any]) -> None:
    """Send the candidate the requests that Triton will send to the new version as it loads."""
    for sample in config.get("model_warmup", []):
        batch = int(sample["batch_size"])
        inputs = {
            name: zeros(given["data_type"].removeprefix("TYPE_"), [batch, *map(int, given["dims"])])
            for name, given in sample["inputs"].items()
        }
        _infer(control, candidate, inputs, _LOGITS)


def _judge(control: Control, of: _Model, images: Mapping[str, bytes]) -> tuple[Agreement, Mapping[int, Found]]:
    """Return the agreement of both engines on all images, and the candidate's instances by image."""
    old: dict[int, Found] = {}
    new: dict[int, Found] = {}
    for image_id, (name, encoded) in enumerate(images.items()):
        try:
            given = _infer(control, of.preprocess, _image(encoded), ("input", *_SHAPES))
            shapes = {key: given.pop(key) for key in _SHAPES}
            serving = _infer(control, of.engine, given, _LOGITS)
            candidate = _infer(control, of.candidate, given, _LOGITS)
            _check_shapes(serving, candidate)
            old[image_id] = _instances(control, of.postprocess, {**serving, **shapes})
            new[image_id] = _instances(control, of.postprocess, {**candidate, **shapes})
        except RolloutError as error:
            raise RolloutError(f"{name}: {error}") from error
    return compare(old, new), new


def _check_shapes(serving: Arrays, candidate: Arrays) -> None:
    """Refuse another number of classes or another stride; the number of queries may differ."""
    for name in _LOGITS:
        theirs, ours = serving[name].shape, candidate[name].shape  # [1, Q, ...]
        if len(theirs) != len(ours) or theirs[2:] != ours[2:]:
            raise RolloutError(f"{name} is {list(ours)}, of the serving engine it is {list(theirs)}")


def _refuse_difference(agreement: Agreement, before: int, min_agreement: float) -> None:
    if not agreement.instances + agreement.extra and min_agreement > 0:
        raise RolloutError("neither engine finds anything in the images, so they prove nothing; give others")
    if agreement.share < min_agreement:
        raise RolloutError(
            f"the candidate agrees with version {before} to {agreement.share:.4f}, allowed {min_agreement:g}: "
            f"{agreement.matched} of {agreement.instances} instances found again, {agreement.extra} new ones"
            + (f", mean mask IoU {agreement.iou:.4f}" if agreement.iou is not None else "")
        )


def _install(folder: Path, files: Mapping[str, Path]) -> int:
    """Write the new version, and return its number. A rename makes it appear in one piece."""
    version, staging = max(_versions(folder)) + 1, folder / _STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)  # left by a killed rollout
        staging.mkdir()
        for name, path in files.items():
            shutil.copyfile(path, staging / name)
        staging.rename(folder / str(version))
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise RolloutError(
            f"the new version was not activated, because it cannot be written to {folder}: "
            f"{error.filename}: {error.strerror}"
        ) from error
    return version


def _switch(control: Control, engine: str, version: int) -> None:
    try:
        control.load(engine)
        if (engine, str(version)) not in control.loaded():
            raise RolloutError(f"version {version} was loaded, but does not serve")
    except CallError as error:
        raise RolloutError(f"version {version} does not load: {one_line(str(error))}") from error


def _take_back(control: Control, engine: str, before: int) -> str:
    """Load the version before, and return what is wrong if it does not serve."""
    try:
        _switch(control, engine, before)
    except RolloutError as error:
        return f"its folder is removed, but {error}: restart the server, which then loads version {before}"
    return ""


def _check_service(
    control: Control, model: str, images: Mapping[str, bytes], wanted: Mapping[int, Found], same_engine: float
) -> None:
    """Send the images as clients do, and compare the instances with the candidate's."""
    got = {number: _instances(control, model, _image(data)) for number, data in enumerate(images.values())}
    if (share := compare(wanted, got).share) < same_engine:
        raise RolloutError(f"clients get other instances than the candidate gave: agreement {share:.4f}")


def _infer(control: Control, model: str, inputs: Arrays, outputs: Sequence[str], **parameters: Any) -> Arrays:
    """Return the outputs of one model.

    Raises:
        RolloutError: the call failed.
    """
    try:
        return control.infer(model, inputs, outputs, parameters=parameters, timeout=_INFER_TIMEOUT_S)
    except CallError as error:
        raise RolloutError(f"{model}: {error}") from error


def _instances(control: Control, model: str, inputs: Arrays) -> Found:
    """Return the instances that a model finds: an ensemble in an image, or post-processing in logits."""
    found = _infer(control, model, inputs, _INSTANCES, **_PARAMETERS)
    height, width = found["size"][0].tolist()
    scores, labels, rle = (found[name][0].tolist() for name in ("scores", "labels", "rle"))
    return Found(scores, labels, rle, (height, width))


def _image(encoded: bytes) -> Arrays:
    return {"image": np.array([[encoded]], object)}
