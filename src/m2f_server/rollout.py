"""Put a new engine into service without a dropped request, and only one that has shown what it does.

The candidate is loaded beside the serving engine under a name of its own, where no client's request reaches it, and
both see the same images. Only then does it become the next version of the engine; Triton loads that one, moves the
ensembles over between two requests and lets the old one finish.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from m2f.contract import PUBLIC_MODEL
from m2f_backend.calls import CallError
from m2f_client.evaluation.parity import Parity, Row, compare
from m2f_client.result import Result
from m2f_server.control import Control
from m2f_server.diagnose import one_line
from m2f_server.serve_errors import RolloutError

ENGINE = "mask2former_engine"
CANDIDATE = "mask2former_engine_candidate"
_SAME_ENGINE = 0.99  # agreement of an engine with itself: TensorRT's kernels may round differently from run to run
_STAGING = ".rollout"  # not a version: Triton passes over it
_INFER_TIMEOUT_S = 60.0
_SHAPES = ("img_shape", "ori_shape")
_LOGITS = ("cls_logits", "mask_logits")
_INSTANCES = ("num_instances", "scores", "labels", "boxes", "rle", "size")
_PARAMETERS = {"score_threshold": 0.15}  # below what counts as confident, so that no partner is cut off

Arrays = dict[str, npt.NDArray[Any]]
Rows = Sequence[Row]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Rollout:
    """What a rollout did.

    Attributes:
        before: the version that served.
        version: the version that serves now.
        parity: the new one's instances against the old one's, on all images.
        agreement: see `agreement`.
    """

    before: int
    version: int
    parity: Parity
    agreement: float


def agreement(parity: Parity) -> float:
    """Return how far two engines agree, from 0 to 1.

    Mean, over the confident instances of either, of mask IoU x (1 - score difference); 0 for those without a partner.
    Where neither has any, 1.
    """
    everything = parity.instances + parity.extra
    if not everything:
        return 1.0
    return parity.matched / everything * (parity.iou or 0.0) * (1.0 - (parity.score_mean or 0.0))


class _Server:
    """The running server: its steps, called one by one."""

    def __init__(self, control: Control, http_url: str) -> None:
        self.control = control
        self._client = InferenceServerClient(http_url, network_timeout=_INFER_TIMEOUT_S)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        outputs: Sequence[str],
        parameters: Mapping[str, Any] | None = None,
    ) -> Arrays:
        """Return the outputs of one model.

        Raises:
            RolloutError: the server does not answer, or with an error.
        """
        tensors = []
        for name, array in inputs.items():
            tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        try:
            requested = [InferRequestedOutput(name) for name in outputs]
            answer = self._client.infer(model, tensors, outputs=requested, parameters=parameters)
        except (InferenceServerException, OSError, http.client.HTTPException) as error:
            raise RolloutError(f"{model}: {error}") from error
        return {name: answer.as_numpy(name) for name in outputs}

    def rows(self, image_id: int, arrays: Mapping[str, npt.NDArray[Any]]) -> Rows:
        """Return what the postprocess step makes of logits, as COCO has it."""
        outputs = self.infer("mask2former_postprocess", arrays, _INSTANCES, _PARAMETERS)
        return Result.from_batch(outputs, 0).to_coco(image_id)

    def answers(self, image_id: int, image: npt.NDArray[np.object_]) -> Rows:
        """Return what a client gets for an image."""
        outputs = self.infer(PUBLIC_MODEL, {"image": image}, _INSTANCES, _PARAMETERS)
        return Result.from_batch(outputs, 0).to_coco(image_id)


def roll_out(
    engine: Path,
    *,
    repository: Path,
    control: Control,
    http_url: str,
    images: Mapping[str, bytes],
    min_agreement: float,
    say: Say = lambda _: None,
) -> Rollout:
    """Make a file the next version of the engine of a running server.

    Args:
        engine: the new `model.plan` or `model.onnx`.
        repository: the folder that the server serves; the new version is written to it.
        control: the server.
        http_url: `host:port` of its HTTP port.
        images: encoded images by name, that old and new engine are compared on.
        min_agreement: the least `agreement` of the new engine with the old one, 0 to 1. 0 is for retrained weights.
        say: called with each step taken, in words.

    Raises:
        RolloutError: the candidate was refused, and the old version serves as before; the message says why.
    """
    server = _Server(control, http_url)
    with _only_one(repository / ENGINE) as folder:
        before = _serving_version(control, folder)
        config = control.config(ENGINE)
        files = _new_files(engine, folder / str(before), _engine_file(config))
        say(f"version {before} serves; loading {engine} beside it")
        with _candidate(control, config, files):
            _warm_up(server, config)
            parity, wanted = _judge(server, images)
        if not parity.instances + parity.extra and min_agreement > 0:
            raise RolloutError("neither engine finds anything in the images, so they prove nothing; give others")
        share = agreement(parity)
        if share < min_agreement:
            raise RolloutError(
                f"the candidate agrees with version {before} to {share:.4f}, allowed {min_agreement:g}: "
                f"{parity.matched} of {parity.instances} instances found again, {parity.extra} new ones"
                + (f", mean mask IoU {parity.iou:.4f}" if parity.iou is not None else "")
            )
        say(f"agreement {share:.4f} on {len(images)} images")
        version = _install(folder, files)
        try:
            _switch(control, version)
            _check_service(server, images, wanted)
        except BaseException as error:  # a Ctrl-C, too
            shutil.rmtree(folder / str(version), ignore_errors=True)
            if now := _take_back(control, before):
                raise RolloutError(f"version {version} was refused ({error}); {now}") from error
            if not isinstance(error, RolloutError):
                raise
            raise RolloutError(f"version {version} was taken back, {before} serves again: {error}") from error
    return Rollout(before=before, version=version, parity=parity, agreement=share)


@contextmanager
def _only_one(folder: Path) -> Iterator[Path]:
    """Hold the engine's folder; the lock goes with the process, whatever ends it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RolloutError(f"{folder}: {error.strerror}; --model-repository is the folder that is served") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    except BlockingIOError:
        raise RolloutError(f"{folder}: another rollout is under way") from None
    finally:
        os.close(descriptor)


def _serving_version(control: Control, folder: Path) -> int:
    """Return the engine's version, which must be the newest in the folder."""
    policy = control.config(ENGINE).get("version_policy", {})
    if policy.get("latest", {}).get("num_versions", 1) != 1 or set(policy) - {"latest"}:
        raise RolloutError(f"{ENGINE} has version_policy {policy}; a rollout needs Triton's own: the latest one")
    serving = sorted(int(version) for name, version in control.loaded() if name == ENGINE)
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
    """Return the file that the server takes for the engine; on ONNX Runtime in Python the code names it."""
    return "model.onnx" if config.get("backend") == "python" else str(config["default_model_filename"])


def _new_files(engine: Path, serving: Path, name: str) -> dict[str, Path]:
    """Return the files of the new version by name: the engine, and the code beside the old one where there is some."""
    if engine.suffix != Path(name).suffix:
        raise RolloutError(f"{engine}: the server runs a {name}; give a file that ends in {Path(name).suffix}")
    if not engine.is_file():
        raise RolloutError(f"{engine}: no such file")
    return {**{path.name: path for path in serving.glob("*.py")}, name: engine}


@contextmanager
def _candidate(control: Control, config: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[None]:
    """Have the candidate loaded under its own name; its files travel in the request, so nothing is left on disk.

    It is not warmed up (`_warm_up` does that): where it fails, Triton 2.51 often ends with a SIGSEGV.
    """
    own = {**config, "name": CANDIDATE, "model_warmup": []}
    try:
        control.load(CANDIDATE, own, {f"1/{name}": path.read_bytes() for name, path in files.items()})
    except CallError as error:
        raise RolloutError(f"the candidate does not load: {one_line(str(error))}") from error
    except OSError as error:
        raise RolloutError(f"{error.filename}: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(CallError):
            control.unload(CANDIDATE)


def _warm_up(server: _Server, config: Mapping[str, Any]) -> None:
    """Ask the candidate for what Triton will ask the new version for as it loads."""
    for sample in config.get("model_warmup", []):
        inputs = {
            name: np.zeros(
                [int(sample["batch_size"]), *map(int, given["dims"])],
                triton_to_np_dtype(given["data_type"].removeprefix("TYPE_")),
            )
            for name, given in sample["inputs"].items()
        }
        server.infer(CANDIDATE, inputs, _LOGITS)


def _judge(server: _Server, images: Mapping[str, bytes]) -> tuple[Parity, dict[int, Rows]]:
    """Return how both engines compare on all images, and the candidate's instances by image."""
    old: dict[int, Rows] = {}
    new: dict[int, Rows] = {}
    for image_id, (name, encoded) in enumerate(images.items()):
        try:
            given = server.infer("mask2former_preprocess", {"image": _tensor(encoded)}, ("input", *_SHAPES))
            pixels, shapes = {"input": given["input"]}, {key: given[key] for key in _SHAPES}
            serving = server.infer(ENGINE, pixels, _LOGITS)
            candidate = server.infer(CANDIDATE, pixels, _LOGITS)
            _check_shapes(serving, candidate)
            old[image_id] = server.rows(image_id, {**serving, **shapes})
            new[image_id] = server.rows(image_id, {**candidate, **shapes})
        except RolloutError as error:
            raise RolloutError(f"{name}: {error}") from error
    return compare(old, new), new


def _check_shapes(serving: Arrays, candidate: Arrays) -> None:
    """Refuse other classes and another stride; the number of queries is the engine's own."""
    for name in _LOGITS:
        theirs, ours = serving[name].shape, candidate[name].shape  # [1, Q, ...]
        if len(theirs) != len(ours) or theirs[2:] != ours[2:]:
            raise RolloutError(f"{name} is {list(ours)}, of the serving engine it is {list(theirs)}")


def _install(folder: Path, files: Mapping[str, Path]) -> int:
    """Write the new version; it appears in one piece, by a rename."""
    version, staging = max(_versions(folder)) + 1, folder / _STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of one that was killed
        staging.mkdir()
        for name, path in files.items():
            shutil.copyfile(path, staging / name)
        staging.rename(folder / str(version))
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise RolloutError(f"{error.filename}: {error.strerror}; the new version is written here") from error
    return version


def _switch(control: Control, version: int) -> None:
    try:
        control.load(ENGINE)
        if (ENGINE, str(version)) not in control.loaded():
            raise RolloutError(f"version {version} was loaded, but does not serve")
    except CallError as error:
        raise RolloutError(f"version {version} does not load: {one_line(str(error))}") from error


def _take_back(control: Control, before: int) -> str:
    """Let the version that is still in the folder serve; return what is wrong if it does not."""
    try:
        _switch(control, before)
    except RolloutError as error:
        return f"its folder is removed, but {error}: restart the server, which then loads version {before}"
    return ""


def _check_service(server: _Server, images: Mapping[str, bytes], wanted: Mapping[int, Sequence[Row]]) -> None:
    """Ask as clients do: the answers must be the candidate's."""
    got = {image_id: server.answers(image_id, _tensor(data)) for image_id, data in enumerate(images.values())}
    if (share := agreement(compare(wanted, got))) < _SAME_ENGINE:
        raise RolloutError(f"clients get other instances than the candidate gave: agreement {share:.4f}")


def _tensor(encoded: bytes) -> npt.NDArray[np.object_]:
    return np.array([[encoded]], object)
