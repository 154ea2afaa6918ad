"""The page on the embedded model: start the real server and `m2f demo`, open the browser. Ctrl-C stops both.

python examples/page.py [--port 7860]
"""

import argparse
import os
import sys
from pathlib import Path

from m2f_cli.demo import demo
from m2f_server import ServeError, serve

ROOT = Path(__file__).resolve().parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", default="7860", help="port of the page (default: %(default)s)")
    args = parser.parse_args()
    try:
        with serve(
            model_repository=ROOT / "model_repository", config_name="cpu", http_port=0, grpc_port=0, metrics_port=0
        ) as server:
            images = os.path.relpath(ROOT / "examples/images")
            command = ["--url", f"grpc://{server.grpc_url}", "--port", args.port, "--examples", images, "--open"]
            print("$ m2f demo", *command, flush=True)
            demo.main(command, prog_name="m2f demo", standalone_mode=False)
    except ServeError as error:
        sys.exit(f"page: {error}")


if __name__ == "__main__":
    main()
