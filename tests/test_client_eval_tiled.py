"""`m2f eval --tile` on a fake server."""

import json

import pytest
from blob_server import answer, blobs, picture_of
from click.testing import CliRunner
from fake_server import serving
from PIL import Image

from m2f.rle import encode_mask
from m2f_cli.main import main

TILE = ("--tile", "100", "--overlap", "0.3")
TILES = 4 * 4
PICTURE = picture_of(260, 260, *((x, y, x + 8, y + 9) for x in range(5, 245, 20) for y in range(5, 245, 20)))


@pytest.fixture
def dataset(tmp_path):
    """One picture of 144 objects."""
    Image.fromarray(PICTURE).save(tmp_path / "large.png")
    size = {"width": 260, "height": 260}
    rows = [
        {
            "id": index,
            "image_id": 1,
            "category_id": 1,
            "segmentation": {"size": [260, 260], "counts": encode_mask(mask).decode()},
        }
        for index, mask in enumerate(blobs(PICTURE), 1)
    ]
    images = [{"id": 1, "file_name": "large.png", **size}]
    document = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "blob"}]}
    (tmp_path / "truth.json").write_text(json.dumps(document))
    return str(tmp_path / "truth.json")


def evaluate(dataset, *options):
    """Return what the command said, and the number of requests."""
    with serving(answer) as fake:
        done = CliRunner().invoke(main, ["eval", dataset, "--by-index", "--url", fake.url, *options])
    return done, len(fake.requests)


def test_all_instances_of_a_picture_count(dataset):
    done, requests = evaluate(dataset, "--json", *TILE)
    assert (done.exit_code, requests) == (0, TILES), done.stderr
    report = json.loads(done.stdout)
    assert report["tiling"] == {"tile": 100, "overlap": 0.3, "whole": False}
    assert (report["segm"]["AP"], report["segm"]["AR100"], report["bbox"]["AP"]) == (1, 1, 1)


def test_without_tiles_coco_counts_the_best_hundred(dataset):
    done, requests = evaluate(dataset, "--json")
    assert (done.exit_code, requests) == (0, 1)
    report = json.loads(done.stdout)
    assert "tiling" not in report
    assert report["segm"]["AR100"] == pytest.approx(100 / 144)


def test_the_report_says_how_pictures_were_cut(dataset):
    done, _ = evaluate(dataset, *TILE, "--whole")
    assert (
        "with score_threshold=0.0, tile=100, overlap=0.3, whole=True; all instances of an image count, "
        "not only the best 100" in " ".join(done.stdout.split())
    )


def test_panoptic_quality_by_tiles_is_refused(dataset):
    refused, requests = evaluate(dataset, "--panoptic", *TILE)
    assert (refused.exit_code, requests) == (2, 0)
    assert "--panoptic is not available with --tile" in refused.stderr
