"""What all peers get alike: the pictures, the network, and the answers that mmdetection itself gives.

Made once, into `work/peers`, and kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .catalog import CORES, EMBEDDED, R50
from .wire import Answer, from_json

ROOT = Path(__file__).resolve().parents[2]
SERVERS = Path(__file__).parent / "servers"
PYTHON = ROOT / ".venv/peers/bin/python"
WORK = ROOT / "work/peers"
PICTURES = {EMBEDDED: 60, R50: 8}
SEED, HELD_OUT = 7, 1  # as `examples/shapes/generate.py --seed 7` draws pictures that the model was not trained on
R50_CONFIG = "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"


@dataclass(frozen=True)
class Material:
    """What one model is measured with.

    Attributes:
        model: of `catalog`.
        repository: of m2f.
        side: of the network's square input.
        environment: CONFIG and CHECKPOINT of mmdetection, in this order.
    """

    model: str
    repository: Path
    side: int
    environment: Mapping[str, str]

    @property
    def network(self) -> Path:
        """The ONNX file that m2f serves."""
        return self.repository / "mask2former_engine/1/model.onnx"

    def plain_network(self) -> Path:
        """Return the ONNX file as PyTorch exports it; made at the first call."""
        path = WORK / f"plain_{self.side}.onnx"
        if not path.is_file():
            command = [sys.executable, "-m", "benchmarks.peers.plain_graph", "export", *self.environment.values()]
            _export(command, "--onnx", path, self.side)
        return path


def pictures() -> list[Path]:
    """Return the pictures: 60 held-out scenes of the shapes data set as JPEG, 140 to 480 pixels a side."""
    folder = WORK / "pictures"
    files = [folder / f"{number:02d}.jpg" for number in range(PICTURES[EMBEDDED])]
    if not all(file.is_file() for file in files):
        sys.path.insert(0, str(ROOT / "examples/shapes"))
        from scenes import make_scene  # type: ignore[import-not-found]  # noqa: PLC0415

        folder.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(files):
            image, *_ = make_scene(np.random.default_rng((SEED, HELD_OUT, number)))
            cv2.imwrite(str(file), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return files


def material(model: str) -> Material:
    """Return the material of a model; that of the R50 is made at the first call, in two minutes."""
    if model == EMBEDDED:
        shapes = ROOT / "examples/shapes"
        own = {
            "CONFIG": str(shapes / "mask2former_shapes.py"),
            "CHECKPOINT": str(shapes / "mask2former_shapes.pth"),
        }
        return Material(model, ROOT / "model_repository", 256, own)
    folder, side = WORK / "r50", 512
    own = {"CONFIG": str(folder / "config.py"), "CHECKPOINT": str(folder / "weights.pth")}
    made = Material(model, folder / "repository", side, own)
    if not made.network.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        run_peer(["mmdet_model.py", "official", R50_CONFIG, str(side), str(folder)], made)
        _export([str(Path(sys.prefix) / "bin/m2f"), "export", *own.values()], "--repository", made.repository, side)
    return made


def _export(command: Sequence[str], option: str, target: Path, side: int) -> None:
    size = ["--size", str(side), str(side)]
    subprocess.run([*command, option, str(target), *size], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def expected(made: Material, files: Sequence[Path]) -> list[Answer]:
    """Return the answers of mmdetection, called without a server."""
    path = WORK / f"expected_{made.side}.json"
    if not path.is_file():
        run_peer(["mmdet_model.py", "expected", str(path), *map(str, files)], made)
    return [from_json(answer) for answer in json.loads(path.read_text())]


def huggingface(files: Sequence[Path]) -> tuple[Path, list[Answer]]:
    """Return the folder of Hugging Face's model, and its answers without pipeline and server."""
    folder = WORK / "huggingface"
    if not (folder / "expected.json").is_file():
        run_peer(["huggingface_model.py", str(folder), *map(str, files)], material(EMBEDDED))
    return folder, [from_json(answer) for answer in json.loads((folder / "expected.json").read_text())]


def peer_environment(made: Material, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a peer's process."""
    own = {"SIDE": str(made.side), "PYTHONPATH": str(SERVERS), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, **made.environment, **more}


def run_peer(arguments: Sequence[str], made: Material) -> None:
    """Run a script of `servers` in the peers' environment."""
    environment = peer_environment(made, {"THREADS": str(CORES)})
    subprocess.run([str(PYTHON), *arguments], cwd=SERVERS, env=environment, check=True)
