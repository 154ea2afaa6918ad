"""`make gpu-check`: what this machine's GPU does with the project, in one report, in 12 minutes and without a network.

Every stage runs in a process of its own with a time limit, so that a stage that fails or hangs costs only itself. The
report is written again after each stage. Answers are compared with `gpu_answers.json`: those of the embedded model on
the processor.

A machine without a GPU runs the same stages with ONNX Runtime on the processor in the GPU's place.
"""

import argparse
import json
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import gpu_stages  # noqa: E402

EMBEDDED = gpu_stages.REPOSITORY / "mask2former_engine/1/model.onnx"
HEADINGS = {"engine_ms": "engine ms", "host_to_host_ms": "with copies ms", "copy_in_ms": "copy in ms",
            "copy_masks_out_ms": "copy masks out ms"}  # fmt: skip


def plan(graphs, repositories, provider):
    """Return the stages in order, as (title, function, arguments, seconds); what matters most comes first."""
    stages = [("machine", "machine", [], 40)]
    other = {"device_outputs": "true", "execution_providers": provider}
    for repository in (str(gpu_stages.REPOSITORY), *repositories):
        name = Path(repository).name
        asked = None if provider == "cuda" else "gpu"
        stages += [
            (f"service: {name}", "service", [repository, asked, {"execution_providers": provider}], 150),
            (f"service: {name}, outputs stay on the GPU", "service", [repository, "gpu", other], 120),
        ]
    stages += [(f"ONNX Runtime: {Path(graph).name}", "onnx_runtime", [graph, provider], 120) for graph in graphs]
    stages += [(f"TensorRT: {Path(graph).name}", "tensorrt", [graph], 150) for graph in graphs]
    return [*stages, ("post-processing", "post_processing", [], 40), ("PyTorch", "pytorch", [], 60)]


def run(function, arguments, seconds):
    """Run a stage in a process of its own; return what it found, or why it found nothing."""
    command = [sys.executable, __file__, "--stage", json.dumps([function, arguments])]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {seconds} s"}
    result = done.stdout.rpartition("RESULT ")[2]
    found = json.loads(result) if done.returncode == 0 and result else {"failed": done.stderr.strip()[-1500:]}
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def as_markdown(results):
    """The report for people: engines in one table, then every stage in full."""
    machine = results.get("machine", {})
    lines = ["# GPU check", "", f"{machine.get('card', 'unknown card')}, {datetime.now(timezone.utc):%Y-%m-%d}", ""]
    lines += [f"| engine | batch | {' | '.join(HEADINGS.values())} |", "|---|---" + "|---" * len(HEADINGS) + "|"]
    for title, result in results.items():
        for batch, row in result.get("batches", {}).items():
            lines.append(f"| {title} | {batch} | {' | '.join(str(row.get(key, '')) for key in HEADINGS)} |")
    for title, result in results.items():
        lines += ["", f"## {title}", "", "```json", json.dumps(result, indent=1), "```"]
    return "\n".join(lines) + "\n"


def main():
    """Run all stages, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report", type=Path, default=Path("gpu_check.md"), help="file to write")
    parser.add_argument("--graph", action="append", default=[], help="another ONNX graph to time; may be repeated")
    parser.add_argument("--repository", action="append", default=[], help="another repository to serve")
    parser.add_argument("--minutes", type=float, default=12, help="limit for all stages together")
    parser.add_argument("--only", default="", help="run only the stages whose title begins so")
    parser.add_argument("--provider", default=None, help="cuda, tensorrt or cpu; default: cuda where there is a GPU")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        function, arguments = json.loads(options.stage)
        result = getattr(gpu_stages, function)(*arguments)
        print("RESULT", json.dumps(result))
        return
    from m2f_server.configuration import gpu_trouble

    provider = options.provider or ("cpu" if gpu_trouble() else "cuda")
    end, results = time.monotonic() + 60 * options.minutes, {}
    for title, function, arguments, seconds in plan([str(EMBEDDED), *options.graph], options.repository, provider):
        if not title.startswith(options.only):
            continue
        left = end - time.monotonic()
        if function == "pytorch" and any(result.get("batches") for result in results.values()):
            continue  # an engine has been timed already
        results[title] = run(function, arguments, min(seconds, left)) if left > 5 else {"failed": "no time left"}
        print(f"{title}: {results[title].get('failed', json.dumps(results[title])[:900])}", flush=True)
        options.report.write_text(as_markdown(results))
        options.report.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    wrong = [title for title, result in results.items() if "failed" in result]
    print(f"wrote {options.report}; failed: {', '.join(wrong) or 'nothing'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
