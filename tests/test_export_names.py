"""`m2f export --name`: several exports in one repository, each serving as it does alone."""

import json
import shutil

import numpy as np
import pytest
from exports import compare_on, m2f_export
from kserve import connect
from sources import CHECKPOINT, CONFIG, ROOT

from m2f.contract import STEPS, models_of
from m2f_client import Client
from m2f_server.launch import serve

pytestmark = [pytest.mark.torch, pytest.mark.server, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

IMAGES = sorted((ROOT / "examples/images").glob("scene_*"))


@pytest.fixture(scope="module")
def both(tmp_path_factory, exported):
    """A repository with two exports: in half precision with its head, and `parts` in full precision."""
    repository = tmp_path_factory.mktemp("names") / "mine"
    shutil.copytree(exported[0], repository)
    options = ["--name", "parts", "--size", 256, 256, *compare_on(IMAGES[:1])]
    result = m2f_export(CONFIG, CHECKPOINT, "--repository", repository, *options)
    assert result.exit_code == 0, result.output
    return repository


@pytest.mark.more
def test_two_exports_are_served_at_once_and_each_answers_as_alone(both, server, export_server):
    report = json.loads((both / "parts/export.json").read_text())
    assert report["name"] == "parts"
    assert set(report["models"]) == set(models_of("parts", head=False))
    assert {path.name for path in both.iterdir()} == {*report["models"], *models_of("mask2former", head=True)}
    assert (both / "parts/labels.txt").read_text().split() == report["class_names"]
    with serve(model_repository=both, config_name="cpu", http_port=0, grpc_port=0, metrics_port=0) as together:
        alone = {"mask2former": export_server, "parts": server}  # the committed graph is that of `parts`
        for model, other in alone.items():
            for url in (f"grpc://{together.grpc_url}", f"http://{together.http_url}"):
                with Client(url, model=model) as mine, Client(f"grpc://{other.grpc_url}") as theirs:
                    found, wanted = mine.predict(IMAGES[0]), theirs.predict(IMAGES[0])
                assert len(found) == len(wanted) > 0
                np.testing.assert_array_equal(found.labels, wanted.labels)
                np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
        triton = connect(together, "grpc")
        before = triton.runs()
        with Client(f"grpc://{together.grpc_url}", model="parts") as client:
            client.predict(IMAGES[0])
        ran = {model for model, runs in triton.runs().items() if runs != before.get(model)}
        assert ran <= {"parts", *(f"parts_{step}" for step in STEPS)}
