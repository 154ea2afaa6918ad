"""Networks on OpenVINO, for a processor.

OpenVINO's package sends a message to its makers as it is imported, if its module `openvino.tools.ovc` can be imported.
This module hides that one and `openvino_telemetry`, so import OpenVINO through it: `from m2f_backend.openvino_network
import openvino`. docs/security.md says what was checked.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f_backend.engine import Shapes, check_shapes

for _name in ("openvino.tools.ovc", "openvino_telemetry"):
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]  # importing it is an ImportError

import openvino  # noqa: E402

_HALF = (openvino.Type.f16, openvino.Type.bf16)
VERSION: str = openvino.get_version().partition("-")[0]


class OpenVinoNetwork:
    """A graph that is compiled for fixed shapes (`Engine`); `streams` threads may call it at a time.

    Args:
        path: the ONNX file.
        shapes: name and shape of each input.
        names: names of the outputs to give.
        threads: number of threads, shared by the streams.
        streams: number of inferences at a time.
        bfloat16: compute in bfloat16 where the processor has instructions for it.
    """

    def __init__(
        self, path: Path, shapes: Shapes, names: tuple[str, ...], *, threads: int, streams: int, bfloat16: bool
    ) -> None:
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape({name: list(shape) for name, shape in shapes})
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "ENABLE_CPU_PINNING": False,  # several models, and the other steps, share the cores
        }
        self._compiled = core.compile_model(model, "CPU", options)
        self._shapes, self._names = dict(shapes), names
        self._of_thread = threading.local()

    @property
    def precision(self) -> str:
        """What it computes in: `float32` or `bfloat16`."""
        hint = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        return {"f32": "float32", "bf16": "bfloat16"}.get(hint, hint)

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Compute a batch (see `Engine.run`)."""
        check_shapes(inputs, self._shapes)
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        contiguous = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        results = self._of_thread.request.infer(contiguous, share_inputs=True)
        return {name: results[name] for name in self._names}


def is_half(path: Path) -> bool:
    """Return whether a graph has weights in half precision.

    ONNX Runtime rounds between the nodes of such a graph, OpenVINO does not.
    """
    nodes = openvino.Core().read_model(path).get_ops()
    return any(node.get_element_type() in _HALF for node in nodes if node.get_type_name() == "Constant")
