"""The page of `m2f demo` as a person uses it: a real Chromium, the real server, on a desktop and on a phone.

`make test-page` installs the browser. The pictures that it leaves in demo_output/ are those of docs/demo-page.md.
"""

import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from m2f_client import Client
from m2f_server import serve

pytestmark = [pytest.mark.browser, pytest.mark.server]

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "examples/images"
SCENE, OTHER = IMAGES / "scene_1.jpg", IMAGES / "scene_3.jpg"
CHROMIUM = Path(sys.prefix) / "browser/node_modules/@sparticuz/chromium/bin"
DESKTOP, PHONE = (1280, 800), (390, 844)
ROWS = "[...document.querySelectorAll('.m2f-table')][0].querySelectorAll('tbody tr')"
DONE_MS = 60_000


@pytest.fixture(scope="module")
def triton():
    """A server of its own: the last test stops it."""
    with serve(
        model_repository=ROOT / "model_repository", config_name="cpu", http_port=0, grpc_port=0, metrics_port=0
    ) as running:
        yield running


@pytest.fixture(scope="module")
def predict(triton):
    """What the page must show: rows of text and the picture."""
    with Client(f"grpc://{triton.grpc_url}") as client:

        def rows_and_picture(image, **parameters):
            result = client.predict(image, **parameters)
            rows = zip(result.names(client.class_names), result.scores, result.boxes, result.areas, strict=True)
            texts = [
                [name, f"{score:.3f}", *(f"{side:.0f}" for side in box), str(area)] for name, score, box, area in rows
            ]
            return texts, result.plot(image, client.class_names)

        yield rows_and_picture


@pytest.fixture(scope="module")
def address(triton):
    command = [Path(sys.executable).with_name("m2f"), "demo", "--url", f"grpc://{triton.grpc_url}", "--port", "0"]
    with subprocess.Popen([*command, "--examples", IMAGES], stdout=subprocess.PIPE, text=True) as page:
        try:
            line = page.stdout.readline()
            assert "the page is at" in line
            yield line.split()[5]
        finally:
            page.send_signal(signal.SIGINT)
            assert page.wait(30) == 0


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Chromium out of its package, on a machine without the internet."""
    import brotli
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("chromium")
    (folder / "chromium").write_bytes(brotli.decompress((CHROMIUM / "chromium.br").read_bytes()))
    (folder / "chromium").chmod(0o700)
    with tarfile.open(fileobj=io.BytesIO(brotli.decompress((CHROMIUM / "al2023.tar.br").read_bytes()))) as libraries:
        libraries.extractall(folder, filter="data")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=folder / "chromium",
            args=["--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
            env={**os.environ, "LD_LIBRARY_PATH": str(folder / "lib")},
            chromium_sandbox=False,  # it may run as root here
        )
        yield browser
        browser.close()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(chromium, address, request):
    """The page, opened; at its end nothing was asked of another machine and the console has no error."""
    width, height = request.param
    touch = request.param == PHONE
    screen = {"width": width, "height": height}
    context = chromium.new_context(
        viewport=screen, has_touch=touch, is_mobile=touch, device_scale_factor=1.5 if touch else 1
    )
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(urlsplit(request.url)))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.get_by_text("Minimum score").wait_for()
    yield page
    assert {url.hostname for url in asked if url.scheme in ("http", "https", "ws", "wss")} == {"127.0.0.1"}
    assert errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    context.close()


def choose(page, path):
    """Give the page a file; another one must have been taken away before."""
    page.get_by_test_id("file-upload").set_input_files(path)


def wait_for_rows(page, expected):
    """Wait until the first table has these rows, and no others."""
    texts = f"JSON.stringify([...{ROWS}].map(row => [...row.cells].map(cell => cell.textContent)))"
    found = f"document.querySelector('.m2f-table') && {texts}"
    try:
        page.wait_for_function(f"expected => {found} === JSON.stringify(expected)", arg=expected, timeout=DONE_MS)
    except Exception:
        pytest.fail(f"the page has {page.evaluate(found)}, expected {expected}")


def shown_picture(page):
    """The pixels that the page shows, as it got them."""
    source = page.get_by_alt_text("instances drawn").first.get_attribute("src")
    with Image.open(io.BytesIO(page.request.get(source).body())) as picture:
        return np.asarray(picture.convert("RGB"), np.float64)


def test_an_image_comes_back_with_its_masks(page, predict):
    rows, picture = predict(SCENE)
    choose(page, SCENE)
    wait_for_rows(page, rows)
    shown = shown_picture(page)
    with Image.open(SCENE) as plain:  # JPEG changes a little, the masks a lot
        assert 3 * np.abs(shown - np.asarray(picture)).mean() < np.abs(shown - np.asarray(plain)).mean()
    steps = page.locator(".m2f-table").nth(1).locator("tbody tr td:first-child").all_text_contents()
    assert steps == ["preprocess", "engine", "postprocess", "waiting for a step", "network, rest", "total"]


def test_threshold_and_classes_are_the_requests(page, predict):
    choose(page, SCENE)
    wait_for_rows(page, predict(SCENE)[0])
    page.get_by_role("slider").fill("0.96")
    wait_for_rows(page, predict(SCENE, score_threshold=0.96)[0])
    page.get_by_label("Classes").click()
    page.get_by_role("option", name="ring").click()
    wait_for_rows(page, predict(SCENE, score_threshold=0.96, classes="ring")[0])
    page.get_by_role("button", name="Reset to default value").click()
    wait_for_rows(page, predict(SCENE, classes="ring")[0])


def test_an_example_is_one_click(page, predict):
    page.locator("#m2f-examples button").nth(3).click()
    wait_for_rows(page, predict(OTHER)[0])


def test_what_is_no_picture_is_said_and_the_next_one_works(page, predict, tmp_path):
    choose(page, SCENE)
    wait_for_rows(page, predict(SCENE)[0])
    (tmp_path / "broken.jpg").write_bytes(SCENE.read_bytes()[:20_000])
    page.get_by_role("button", name="Clear").click()
    choose(page, tmp_path / "broken.jpg")
    page.get_by_role("alert").get_by_text("the image is damaged").wait_for(timeout=DONE_MS)
    assert page.locator(".m2f-table").count() == 0
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("alert").wait_for(state="detached")
    choose(page, OTHER)
    wait_for_rows(page, predict(OTHER)[0])


def test_a_large_picture_by_tiles(page, predict, triton, tmp_path):
    with Image.open(SCENE) as scene:
        part = np.asarray(scene.convert("RGB").resize((300, 300)))
    large = tmp_path / "large.png"
    Image.fromarray(np.hstack([part] * 3)).save(large)
    with Client(f"grpc://{triton.grpc_url}") as client:
        tiled = client.predict_tiled(large, tile=256)
    choose(page, large)
    wait_for_rows(page, predict(large)[0])
    assert page.get_by_label("Overlap").count() == 0
    page.get_by_label("Tiles").click()
    page.get_by_role("option", name="256 x 256 pixels").click()
    page.get_by_text(f"{len(tiled)} instances").wait_for(timeout=DONE_MS)
    page.get_by_text("total of 10 tiles").wait_for(timeout=DONE_MS)
    page.get_by_label("Also the picture as a whole").check()
    page.get_by_text("total of 11 tiles").wait_for(timeout=DONE_MS)
    page.get_by_label("Tiles").click()
    page.get_by_role("option", name="Off").click()
    wait_for_rows(page, predict(large)[0])


def test_the_pictures_of_the_docs(page):
    name = "phone" if page.viewport_size["width"] == PHONE[0] else "desktop"
    page.locator("#m2f-examples button").nth(1).click()
    page.locator(".m2f-table").nth(1).wait_for(timeout=DONE_MS)
    for _ in range(3):  # the first requests after the start are slower than the others
        page.get_by_role("slider").press("ArrowRight")
        page.wait_for_timeout(1000)
    (ROOT / "demo_output").mkdir(exist_ok=True)
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as shot:
        pixels = np.rint(np.asarray(shot.convert("RGB")) / 255 * 31) / 31 * 255  # 32 levels: half the file
    Image.fromarray(pixels.round().astype(np.uint8)).save(ROOT / f"demo_output/page_{name}.png", optimize=True)


def test_a_server_that_has_gone_is_said(chromium, address, triton):
    page = chromium.new_page()
    page.goto(address)
    triton.stop()
    choose(page, SCENE)
    page.get_by_role("alert").get_by_text("no gRPC server at").wait_for(timeout=DONE_MS)
    page.close()
