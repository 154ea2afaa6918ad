"""The network on ONNX Runtime or OpenVINO, as their documentation says for a processor."""

import os
import threading

OUTPUTS = ("cls_logits", "mask_logits")
CALLS = int(os.environ.get("CALLS", "1"))  # inferences at the same time


def onnxruntime_engine(model, *, threads, calls):
    """Open a session whose inferences take `threads` threads each; any number of callers may share the session."""
    import onnxruntime  # noqa: PLC0415  # each engine only where it is used

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if calls > 1:  # threads that spin would take the cores from the other callers
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(OUTPUTS, {"input": batch})


def openvino_engine(model, *, threads, calls):
    """Compile for a static shape, a stream for each call; each calling thread has an infer request of its own."""
    import openvino  # noqa: PLC0415

    core = openvino.Core()
    network = core.read_model(model)
    sides = [side.get_length() for side in list(network.input("input").partial_shape)[1:]]
    network.reshape({"input": [1, *sides]})
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT" if calls > 1 else "LATENCY",
        "NUM_STREAMS": calls,
        "INFERENCE_NUM_THREADS": calls * threads,
        # OpenVINO ties its threads to the first cores: two processes of one thread would share one core
        "ENABLE_CPU_PINNING": calls * threads == len(os.sched_getaffinity(0)),
        "INFERENCE_PRECISION_HINT": "f32",  # by itself OpenVINO computes in bf16 where the processor can
    }
    compiled = core.compile_model(network, "CPU", settings)
    own = threading.local()

    def run(batch):
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        results = own.request.infer({"input": batch}, share_inputs=True, share_outputs=True)
        return [results[name] for name in OUTPUTS]

    return run


ENGINES = {"onnxruntime": onnxruntime_engine, "openvino": openvino_engine}


def open_engine():
    """Return the engine of the environment variables ENGINE, MODEL, THREADS (of one inference) and CALLS."""
    return ENGINES[os.environ["ENGINE"]](os.environ["MODEL"], threads=int(os.environ["THREADS"]), calls=CALLS)
