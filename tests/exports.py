"""An export of the embedded checkpoint, made once for a whole run of the tests."""

import json

from click.testing import CliRunner
from sources import CHECKPOINT, CONFIG, ROOT

from m2f_cli.main import main

# The server of an export is on this machine, so no proxy is asked: these refuse every connection.
PROXIES = dict.fromkeys(
    ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy"),
    "http://127.0.0.1:9",
)
NO_EXCEPTION = {"no_proxy": None, "NO_PROXY": None, "no_grpc_proxy": None}


def m2f_export(*arguments):
    """Run the command as behind a proxy; return its result."""
    command = ["export", *map(str, arguments)]
    return CliRunner().invoke(main, command, catch_exceptions=False, env={**PROXIES, **NO_EXCEPTION})


def compare_on(images):
    """Options of the command: the pictures to compare the steps on."""
    return [word for image in images for word in ("--image", image)]


def export_embedded(folder):
    """Export in half precision, with a head and an engine, into `folder/mine`, unless that has been done.

    Returns:
        The repository, and the report.
    """
    target, report = folder / "mine", folder / "report.json"
    if not report.exists():
        pictures = sorted((ROOT / "examples/images").glob("scene_*"))
        options = ["--size", 256, 256, "--precision", "fp16", "--head", "full", "--json"]
        engine = ["--engine", "--target", "26.07-py3", "--timing-cache", folder / "timing.cache"]
        result = m2f_export(CONFIG, CHECKPOINT, "--repository", target, *options, *engine, *compare_on(pictures))
        assert result.exit_code == 0, result.output
        report.write_text(result.stdout)
    return target, json.loads(report.read_text())
