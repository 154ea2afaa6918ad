"""The peers: what each one runs, with the settings that its documentation recommends or that measured best."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CORES = len(os.sched_getaffinity(0))
EMBEDDED, R50 = "embedded", "R50 512 x 512"

M2F, M2F_CLIENT = "m2f", "m2f, its own client"
SCRIPT, SCRIPT_OPENVINO = "FastAPI script, ONNX Runtime", "FastAPI script, OpenVINO"
PLAIN = "FastAPI script, ONNX Runtime, torch's graph"
MMDET, MMDET_LIT = "mmdetection + FastAPI", "mmdetection + LitServe"
HUGGINGFACE = "Hugging Face pipeline + LitServe"
ONE_STEP, NAIVE = "Triton, one Python model", "Triton, naive ensemble"
ONE_STEP_OPENVINO = "Triton, one Python model on OpenVINO"
BARE, BARE_OPENVINO = "bare ONNX Runtime", "bare OpenVINO"

Kind = Literal["m2f", "uvicorn", "litserve", "triton", "bare"]


@dataclass(frozen=True)
class Peer:
    """One way to serve, with one setting.

    Attributes:
        name: of the way; its settings are compared with each other.
        setting: in words.
        kind: what is started: `m2f serve`, uvicorn, LitServe, a plain tritonserver, or nothing but the engine.
        target: module of the application, LitServe's KIND, Triton's folder and model, or `client` for m2f's own.
        engine: of `servers/engines.py`, where the peer does not bring PyTorch.
        workers: processes of a Python server; 2 with Triton: `configs/two.pbtxt`.
        threads: threads of one inference.
        calls: inferences at the same time in a process.
        plain: whether the network is the graph as PyTorch exports it; else it is m2f's, which is faster.
        models: what it is measured with.
    """

    name: str
    setting: str
    kind: Kind
    target: str = ""
    engine: str = ""
    workers: int = 1
    threads: int = 1
    calls: int = 1
    plain: bool = False
    models: Sequence[str] = (EMBEDDED,)

    @property
    def environment(self) -> dict[str, str]:
        """Return what its process reads."""
        return {
            "ENGINE": self.engine,
            "KIND": self.target,
            "THREADS": str(self.threads),
            "CALLS": str(self.calls),
        }


BOTH = (EMBEDDED, R50)
SHARED, ALONE = f"{CORES} calls of 1 thread", f"1 call of {CORES} threads"
PROCESSES = f"{CORES} processes of 1 thread"


def _engines(name: str, engine: str, kind: Kind, target: str = "") -> list[Peer]:
    """Return the two sensible settings of an engine in one process."""
    return [
        Peer(name, SHARED, kind, target, engine, calls=CORES, models=BOTH),
        Peer(name, ALONE, kind, target, engine, threads=CORES, models=BOTH),
    ]


def _scripts(name: str, engine: str) -> list[Peer]:
    """Return the script with the two settings in one process, and with a process for each core."""
    processes = Peer(name, PROCESSES, "uvicorn", "script:app", engine, workers=CORES, models=BOTH)
    return [*_engines(name, engine, "uvicorn", "script:app"), processes]


def _tritons(name: str, target: str) -> list[Peer]:
    """Return a model of Triton's as tutorials have it, and with two instances of its engine."""
    return [
        Peer(name, f"1 instance of {CORES} threads", "triton", target, "onnxruntime", threads=CORES),
        Peer(name, "2 instances of 1 thread", "triton", target, "onnxruntime", workers=2),
    ]


PEERS: tuple[Peer, ...] = (
    Peer(M2F, "as it ships", "m2f", models=BOTH),
    *_scripts(SCRIPT, "onnxruntime"),
    *_scripts(SCRIPT_OPENVINO, "openvino"),
    Peer(PLAIN, ALONE, "uvicorn", "script:app", "onnxruntime", threads=CORES, plain=True),
    Peer(PLAIN, PROCESSES, "uvicorn", "script:app", "onnxruntime", workers=CORES, plain=True),
    Peer(M2F_CLIENT, "as it ships", "m2f", "client"),
    *_tritons(ONE_STEP, "one_step"),
    Peer(ONE_STEP_OPENVINO, "2 instances of 1 thread", "triton", "one_step", "openvino", workers=2),
    *_tritons(NAIVE, "naive"),
    Peer(MMDET, f"1 process of {CORES} threads", "uvicorn", "mmdet_fastapi:app", threads=CORES),
    Peer(MMDET, PROCESSES, "uvicorn", "mmdet_fastapi:app", workers=CORES, models=BOTH),
    Peer(MMDET_LIT, PROCESSES, "litserve", "mmdet", workers=CORES),
    Peer(HUGGINGFACE, PROCESSES, "litserve", "huggingface", workers=CORES),
    *_engines(BARE, "onnxruntime", "bare"),
    *_engines(BARE_OPENVINO, "openvino", "bare"),
)
