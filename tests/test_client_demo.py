"""The page of `m2f demo`: what it asks and shows, how it starts and stops; tests/test_demo_page.py has the browser."""

import io
import json
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from page_tables import cells
from PIL import Image

from m2f.image import decode_image
from m2f_cli.main import main
from m2f_client import Client
from m2f_client.client_errors import InvalidRequest, ModelNotFound, ServerUnavailable
from m2f_client.fake import FakeTransport, result_of, stacked
from m2f_client.page.models import Models
from m2f_client.page.picture import draw
from m2f_client.page.timed_client import Question, TimedClient
from m2f_client.tiled import Tiling
from m2f_client.transports.address import Endpoint
from m2f_client.transports.connect import connect

IMAGES = Path(__file__).parents[1] / "examples/images"
SCENE = IMAGES / "scene_1.jpg"
NO_TILES = (0, 0.2, False)
STEPS = ("mask2former_preprocess", "mask2former_engine", "mask2former_postprocess")


@pytest.fixture(scope="module")
def page():
    """The page's module. Gradio takes three seconds to import, and the other workers need not wait for it."""
    from m2f_client.page import page

    return page


@pytest.fixture(scope="module", params=["grpc", "http"])
def page_server(server, request):
    """The real server as the page sees it, over both protocols."""
    url = f"{request.param}://{server.grpc_url if request.param == 'grpc' else server.http_url}"
    with closing(TimedClient(connect(Endpoint.parse(url)), model="mask2former", timeout=60)) as page_server:
        yield page_server


@pytest.fixture(scope="module")
def truth(server):
    with Client(f"grpc://{server.grpc_url}") as client:
        return client.predict(SCENE, score_threshold=0.95), client.class_names


def rows_of(result, class_names):
    rows = zip(result.names(class_names), result.scores, result.boxes, result.areas, strict=True)
    return [[name, f"{score:.3f}", *(f"{side:.0f}" for side in box), str(area)] for name, score, box, area in rows]


@pytest.mark.server
class TestServer:
    def test_names_and_threshold_are_the_servers(self, page_server, truth):
        assert page_server.class_names == truth[1]
        assert page_server.score_threshold == 0.5

    def test_an_answer_is_that_of_the_client_with_the_time_of_each_step(self, page_server, truth):
        found = page_server.ask(SCENE, Question(0.95))
        for name, array in truth[0].outputs.items():
            assert np.array_equal(found.result.outputs[name], array), name
        assert tuple(step.name for step in found.steps) == STEPS
        assert all(step.work_ms > 0 and step.wait_ms >= 0 for step in found.steps)
        assert max(step.work_ms for step in found.steps) < found.total_ms

    def test_classes_are_chosen_by_index(self, page_server, truth):
        wanted = truth[0].labels[-1]
        found = page_server.ask(SCENE, Question(0.95, [int(wanted)]))
        assert found.result.labels.tolist() == [label for label in truth[0].labels if label == wanted]


class Told(FakeTransport):
    """A server whose model is no ensemble, states no class names, and has statistics that cannot be read."""

    def __init__(self):
        masks = np.ones((1, 4, 4), bool)
        super().__init__(lambda _request: stacked([result_of(masks)]))

    async def model_config(self, model, _timeout):
        return {"name": model}

    async def statistics(self, _timeout):
        raise ServerUnavailable("not for you")


def test_a_server_that_keeps_its_statistics_to_itself_is_no_obstacle():
    server = TimedClient(Told(), model="parts", timeout=1)
    assert server.model == "parts"
    assert (server.class_names, server.score_threshold) == (None, 0)
    assert server.ask(SCENE, Question(0)).steps == ()


def test_the_picture_is_no_larger_than_a_screen(tmp_path):
    Image.new("RGB", (4000, 3000)).save(tmp_path / "a.png")
    assert draw(tmp_path / "a.png", result_of(np.ones((1, 3000, 4000), bool)), None).size == (1600, 1200)


@pytest.fixture(scope="class")
def address(page, server):
    """The page at work. It tells nobody but the server and itself anything."""
    with (
        pytest.MonkeyPatch.context() as patch,
        closing(
            Models(connect(Endpoint.parse(f"grpc://{server.grpc_url}")), first="mask2former", timeout=60)
        ) as models,
    ):
        for variable in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
            patch.setenv(variable, "")  # restored at the end
        asked = watch_connections(patch)
        with page.served(models, [SCENE], host="127.0.0.1", port=0) as address:
            yield address
        assert asked == {"127.0.0.1"}


@pytest.mark.server
@pytest.mark.filterwarnings("ignore")  # gradio's, of pandas
class TestPage:
    def test_an_image_comes_back_with_its_rows(self, address, truth):
        with SCENE.open("rb") as file:
            path = httpx.post(f"{address}gradio_api/upload", files={"files": file}, timeout=60).json()[0]
        problem, picture, found, latency = asked_of(address, path, 0.95, [], "mask2former", *NO_TILES)
        assert problem["visible"] is False
        with Image.open(io.BytesIO(httpx.get(picture["url"]).content)) as shown:
            assert shown.size == tuple(truth[0].size[::-1])
        assert cells(found) == rows_of(*truth)
        assert [row[0] for row in cells(latency)][:3] == ["preprocess", "engine", "postprocess"]

    def test_a_large_picture_comes_back_by_tiles(self, address, server, tmp_path):
        large = mosaic(tmp_path / "large.png")
        with large.open("rb") as file:
            path = httpx.post(f"{address}gradio_api/upload", files={"files": file}, timeout=60).json()[0]
        _, picture, found, latency = asked_of(address, path, 0.95, [], "mask2former", 256, 0.25, True)
        with Client(f"grpc://{server.grpc_url}") as client:
            expected = client.predict_tiled(large, tile=256, overlap=0.25, whole=True, score_threshold=0.95)
            assert cells(found) == rows_of(expected, client.class_names)
        with Image.open(io.BytesIO(httpx.get(picture["url"]).content)) as shown:
            assert shown.size == (600, 300)
        assert [row[0] for row in cells(latency)] == [
            "preprocess", "engine", "postprocess", "waiting for a step", "total of 7 tiles",
        ]  # fmt: skip

    def test_a_file_of_this_machine_is_none_of_the_page(self, address):
        assert (
            "was not uploaded"
            in asked_of(address, str(IMAGES / "scene_3.jpg"), 0.5, [], "mask2former", *NO_TILES)["error"]
        )

    def test_an_example_is_shown_from_where_it_is(self, address):
        assert httpx.get(f"{address}gradio_api/file={SCENE}").content == SCENE.read_bytes()
        assert httpx.get(f"{address}gradio_api/file={IMAGES / 'scene_3.jpg'}").status_code == 403

    def test_the_document_loads_nothing_from_elsewhere(self, address):
        loaded = re.findall(r"""(?:src=|href=|url\()\\?["']?https?://([^/:"'\\\s<>)]+)""", httpx.get(address).text)
        assert set(loaded) <= {"127.0.0.1", "gradio.app"}  # a link of Gradio's: the browser does not follow it


def mosaic(path):
    """A picture of 600 x 300 pixels."""
    with Image.open(SCENE) as scene:
        part = np.asarray(scene.convert("RGB").resize((300, 300)))
    Image.fromarray(np.hstack([part, part])).save(path)
    return path


def asked_of(address, path, *controls):
    """What the page answers to a file with its controls so: Gradio's values, or its error."""
    file = {"path": path, "orig_name": "a.jpg", "meta": {"_type": "gradio.FileData"}}
    call = httpx.post(f"{address}gradio_api/call/ask", json={"data": [file, *controls]}, timeout=60).json()["event_id"]
    events = httpx.get(f"{address}gradio_api/call/ask/{call}", timeout=60).text
    return json.loads(events.strip().rpartition("data: ")[2])


def watch_connections(patch):
    """Return the set of hosts that this process connects to or looks up from now on."""
    hosts = set()
    connect_, lookup = socket.socket.connect, socket.getaddrinfo

    def connecting(self, address):
        if self.family != socket.AF_UNIX:
            hosts.add(address[0])
        return connect_(self, address)

    def looking_up(host, *arguments, **named):
        hosts.add(host.decode() if isinstance(host, bytes) else host)
        return lookup(host, *arguments, **named)

    patch.setattr(socket.socket, "connect", connecting)
    patch.setattr(socket, "getaddrinfo", looking_up)
    return hosts


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"not a picture", "allowed formats: JPEG, PNG, WebP"), (SCENE.read_bytes()[:20000], "damaged")],
)
@pytest.mark.server
def test_what_is_no_picture_gives_a_notice(page, server, tmp_path, content, said):
    (tmp_path / "file.jpg").write_bytes(content)
    connection = connect(Endpoint.parse(f"http://{server.http_url}"))
    with closing(Models(connection, first="mask2former", timeout=60)) as models:
        problem, picture, found, latency = page.answer(models, "mask2former", tmp_path / "file.jpg", Question(0.5))
    assert problem.visible
    assert said in problem.value
    assert (picture, found, latency) == (None, "", "")


def test_the_page_is_told_how_many_tiles_are_done(page, tmp_path):
    class Sized(Told):
        async def infer(self, request):
            if request.outputs == ("class_names",):
                return await super().infer(request)
            height, width = decode_image(request.inputs["image"][0, 0], max_pixels=1 << 20).shape[:2]
            return stacked([result_of(np.ones((1, height, width), bool))])

    told = []
    question = Question(0.5, tiling=Tiling(256, 0.0))
    models = Models(Sized(), first="m", timeout=1)
    _, picture, found, latency = page.answer(
        models, "m", mosaic(tmp_path / "a.png"), question, progress=lambda *done: told.append(done)
    )
    assert told == [(done, 6) for done in range(1, 7)]
    assert picture.size == (600, 300)
    assert "in 600 x 300 pixels" in found
    assert cells(latency)[-1][0] == "total of 6 tiles"


def test_a_tile_that_the_server_refuses_is_named_in_the_notice(page, tmp_path):
    class Refusing(Told):
        async def infer(self, request):
            if request.outputs == ("class_names",):
                return await super().infer(request)
            raise InvalidRequest("'min_score' is not a parameter")

    models = Models(Refusing(), first="m", timeout=1)
    problem, *_ = page.answer(models, "m", mosaic(tmp_path / "a.png"), Question(0.5, tiling=Tiling(512)))
    assert "tile 1 of 2 (x 0 to 512, y 0 to 300): &#x27;min_score&#x27;" in problem.value


def test_a_notice_does_not_name_the_upload(page, tmp_path):
    (tmp_path / "a.png").write_bytes(SCENE.read_bytes()[:20000])
    question = Question(0.5, tiling=Tiling(256))
    problem, *_ = page.answer(Models(Told(), first="m", timeout=1), "m", tmp_path / "a.png", question)
    assert "the image is damaged" in problem.value
    assert str(tmp_path) not in problem.value


def test_an_upload_that_has_expired_gives_a_notice(page):
    problem, *_ = page.answer(Models(Told(), first="m", timeout=1), "m", IMAGES / "gone.jpg", Question(0.5))
    assert "choose it again" in problem.value


def test_a_server_that_has_gone_gives_a_notice(page):
    class Gone(Told):
        async def infer(self, request):
            if request.outputs == ("class_names",):
                return await super().infer(request)
            raise ServerUnavailable("no gRPC server at grpc://127.0.0.1:1")

    problem, *_ = page.answer(Models(Gone(), first="m", timeout=1), "m", SCENE, Question(0.5))
    assert "no gRPC server at grpc://127.0.0.1:1" in problem.value


class Several(Told):
    """A server with two public models and a step; `gone` has been unloaded meanwhile."""

    async def statistics(self, _timeout):
        return [{"name": name, "version": "1"} for name in ("parts", "cells", "cells_postprocess", "gone")]

    async def model_config(self, model, _timeout):
        if model == "gone":
            raise ModelNotFound("'gone' is not found")
        if model.endswith("_postprocess"):
            return {"name": model, "parameters": {"score_threshold": {"string_value": "0.25"}}}
        logits = {"cls_logits": "cls_logits"}
        step = {"model_name": f"{model}_postprocess", "input_map": logits, "output_map": {"num_instances": "n"}}
        return {
            "name": model,
            "input": [{"name": "image", "data_type": "TYPE_STRING"}],
            "output": [{"name": "num_instances"}],
            "ensemble_scheduling": {"step": [step]},
        }

    async def infer(self, request):
        if request.model == "gone":
            raise ModelNotFound("'gone' is not found")
        return await super().infer(request)


def test_the_models_of_a_server_are_offered_and_a_choice_sets_the_controls(page):
    models = Models(Several(), first="cells", timeout=1)
    assert models.names == ["cells", "parts"]
    threshold, classes = page.choose(models, "parts")
    assert (threshold.value, classes.value, classes.visible) == (0.25, [], False)
    problem, picture, *_ = page.answer(models, "parts", SCENE, Question(0.3))
    assert not problem.visible
    assert picture.size == Image.open(SCENE).size
    assert models.client("parts").model == "parts"


def test_a_model_that_has_gone_gives_a_notice_and_leaves_the_controls(page):
    models = Models(Several(), first="cells", timeout=1)
    assert page.choose(models, "gone") == (page.gr.skip(), page.gr.skip())
    problem, picture, *_ = page.answer(models, "gone", SCENE, Question(0.3))
    assert "gone&#x27; is not found" in problem.value
    assert picture is None


def test_a_server_that_does_not_tell_its_models_has_one():
    assert Models(Told(), first="parts", timeout=1).names == ["parts"]


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(main, ["demo", *arguments])

    def test_a_server_that_is_not_there(self):
        done = self.run("--url", f"grpc://127.0.0.1:{free_port()}", "--port", "0", "--timeout", "2")
        assert done.exit_code == 1
        assert "start one with: m2f serve" in done.output

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--url", "grpc://a,b"), "one server"),
            (("--url", "s3://a"), "is not an address: s3:// is not a scheme of a server; use grpc://"),
            (("--examples", str(IMAGES.parents[1] / "src")), "no .apng, .jfif"),
            (("--port", "70000"), "70000"),
        ],
    )
    def test_wrong_usage(self, arguments, said):
        done = self.run(*arguments)
        assert done.exit_code == 2
        assert said in done.output

    @pytest.mark.server
    def test_a_model_that_is_not_there(self, server):
        done = self.run("--url", f"grpc://{server.grpc_url}", "--port", "0", "--model", "parts")
        assert done.exit_code == 1
        assert "'parts' is not found" in done.output
        assert "; it has: mask2former" in done.output

    @pytest.mark.server
    def test_a_port_that_is_taken(self, server):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = self.run("--url", f"grpc://{server.grpc_url}", "--port", str(port))
        assert done.exit_code == 1
        assert f"127.0.0.1, port {port} (Address already in use)" in done.output

    @pytest.mark.server
    @pytest.mark.parametrize("host", ["nosuch.invalid", "192.0.2.1", ""])
    def test_an_address_that_cannot_be_listened_on(self, server, host):
        done = self.run("--url", f"grpc://{server.grpc_url}", "--port", "0", "--host", host)
        assert done.exit_code == 1
        assert f"cannot serve the page at {host}, port 0 (" in done.output
        assert "see --host" in done.output

    @pytest.mark.server
    def test_a_signal_stops_it_and_nothing_is_left(self, server, tmp_path):
        code = "from m2f_cli.main import main; main()"
        options = ["--url", f"http://{server.http_url}", "--port", "0", "--host", "::1"]
        command = [sys.executable, "-c", code, "demo", *options]
        proxies = {"http_proxy": "http://127.0.0.1:1", "HTTPS_PROXY": "foo://x", "all_proxy": "socks5://127.0.0.1:1"}
        environment = {"TMPDIR": str(tmp_path), "PATH": "", **proxies}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as page:
            try:
                line = page.stdout.readline()
                page.send_signal(signal.SIGTERM)
                _, said = page.communicate(timeout=120)
            finally:
                page.kill()
        assert line.startswith("m2f: the page is at http://[::1]:")
        assert (page.returncode, said) == (0, "")
        assert list(tmp_path.glob("m2f_demo_*")) == []
