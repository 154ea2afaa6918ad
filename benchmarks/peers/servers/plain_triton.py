"""Become a plain `tritonserver`: `plain_triton.py REPOSITORY PORT CONFIG_NAME`. No supervisor, no settings of m2f's."""

import os
import sys
import tempfile
from pathlib import Path

from m2f_server.locate import prepare

repository, port, config_name = sys.argv[1:]
installed = prepare(Path(tempfile.mkdtemp(dir=os.environ["TMPDIR"])))
options = [f"--model-repository={repository}", f"--http-port={port}", "--http-address=127.0.0.1"]
options += ["--allow-grpc=false", "--allow-metrics=false", f"--model-config-name={config_name}"]
os.execve(  # noqa: S606
    installed.binary, [str(installed.binary), *installed.arguments, *options], {**os.environ, **installed.environment}
)
