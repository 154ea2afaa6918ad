"""The whole way in one go: start the real server, send it images, write pictures and JSON, stop it.

python examples/demo.py --out demo_output [IMAGE ...]

It is `m2f serve --config-name cpu` and `m2f predict`, on free ports.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from m2f_server import ServeError, serve

ROOT = Path(__file__).resolve().parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="demo_output", help="folder for overlays and instances.json")
    parser.add_argument("images", nargs="*", help="JPEG, PNG or WebP; by default those in examples/images")
    args = parser.parse_args()
    folder = Path(os.path.relpath(ROOT / "examples/images"))
    images = args.images or sorted(path for path in folder.iterdir() if path.suffix != ".md")
    m2f = Path(sys.executable).with_name("m2f")
    try:
        with serve(
            model_repository=ROOT / "model_repository", config_name="cpu", http_port=0, grpc_port=0, metrics_port=0
        ) as server:
            url = f"grpc://{server.grpc_url}"
            print(
                f"tritonserver is ready at {url} ({len(server.models)} models, {server.start_seconds:.1f} s)",
                flush=True,
            )
            command = ["m2f", "predict", "--url", url, "--parameter", "iou_threshold=0.7", "--out", args.out]
            print("$", *command, "IMAGE ...", flush=True)
            return subprocess.call([m2f, *command[1:], *images])
    except ServeError as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    sys.exit(main())
