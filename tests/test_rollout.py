"""Versions rolled on the real server under load: good ones without a dropped request, bad ones not at all."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from chaos_report import report
from conftest import IMAGES, ROOT
from load import Load, learn, summary
from onnx import helper, numpy_helper
from pictures import encode

from m2f_backend.calls import CallError
from m2f_server import serve
from m2f_server.control import Control
from m2f_server.remains import OWNER_FILE
from m2f_server.rollout import roll_out
from m2f_server.serve_errors import RolloutError

pytestmark = pytest.mark.server

ENGINE = "mask2former_engine"
CANDIDATE = f"{ENGINE}_candidate"
RATE = 10  # requests a second in the short forms
GOOD = ROOT / "model_repository" / ENGINE / "1/model.onnx"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server on a repository of its own, which the rollouts write to: the versions go on from test to test."""
    tmp_path = tmp_path_factory.mktemp("served")
    repository = tmp_path / "model_repository"
    shutil.copytree(ROOT / "model_repository", repository)
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    with serve(
        model_repository=repository, config_name="cpu", http_port=0, grpc_port=0, metrics_port=0,
        admin_token_file=token,
    ) as server:  # fmt: skip
        server.repository, server.token_file = repository, token
        yield server


def roll(server, engine, **options):
    images = {path.name: path.read_bytes() for path in IMAGES[:2]}
    usual = {"repository": server.repository, "control": server.control, "images": images, "min_agreement": 0.95}
    return roll_out(engine, **{**usual, **options})


def cases(server):
    return learn(server, [path.read_bytes() for path in IMAGES[:2]], ("scores", "labels", "rle"), ("masks",))


def serving(server):
    (version,) = (int(version) for name, version in server.control.loaded() if name == ENGINE)
    return version


def versions(server):
    return sorted(
        path.name for path in (server.repository / ENGINE).iterdir() if path.is_dir() and path.name != "configs"
    )


def changed(tmp_path, name, change):
    model = onnx.load(GOOD)
    change(model.graph)
    path = tmp_path / f"{name}.onnx"
    onnx.save(model, path)
    return path


def other_names(graph):
    graph.output[0].name = "pred_logits"
    for node in graph.node:
        node.output[:] = ["pred_logits" if name == "cls_logits" else name for name in node.output]


def one_size(graph):
    """Not that of the warm-up in the engine's configuration."""
    for dim, size in zip(graph.input[0].type.tensor_type.shape.dim[1:3], (320, 320), strict=True):
        dim.dim_value = size
    del graph.value_info[:]


def one_class_less(graph):
    for node in graph.node:
        node.output[:] = ["all_cls_logits" if name == "cls_logits" else name for name in node.output]
    values = {"one": [1], "end": [np.iinfo(np.int64).max], "axis": [2]}
    graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), f"cut_{k}") for k, v in values.items())
    names = ["all_cls_logits", "cut_one", "cut_end", "cut_axis"]
    graph.node.append(helper.make_node("Slice", names, ["cls_logits"]))
    graph.output[0].type.tensor_type.shape.dim[2].dim_value -= 1


def weights(change):
    def apply(graph):
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32 and array.size > 256:
                tensor.CopyFrom(numpy_helper.from_array(change(array), tensor.name))

    return apply


def drifted(array):
    rng = np.random.default_rng(0)
    return (array + rng.normal(0, 0.3 * array.std(), array.shape)).astype(np.float32)


def bad_versions(tmp_path):
    """Each kind: the file, and what the refusal says."""
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(GOOD.read_bytes()[:100_000])
    return {
        "corrupt": (corrupt, "does not load: .*Protobuf"),
        "other names": (changed(tmp_path, "names", other_names), "does not load: .*pred_logits; wanted are cls_logits"),
        "one size only": (
            changed(tmp_path, "size", one_size),
            r"_candidate: .*the network takes",
        ),
        "one class less": (
            changed(tmp_path, "classes", one_class_less),
            r"cls_logits is \[1, 40, 5\], of the",
        ),
        "NaN weights": (changed(tmp_path, "nan", weights(lambda a: np.full_like(a, np.nan))), "finite"),
        "drifted weights": (changed(tmp_path, "drift", weights(drifted)), r"agrees with version \d+ to 0"),
    }


def roll_under_load(server, rolls, rate=None):
    first = serving(server)
    with Load(server.grpc_url, cases(server), workers=2, rate=rate) as load:
        for number in range(first, first + rolls):
            done = roll(server, GOOD)
            assert (done.before, done.version) == (number, number + 1)
            assert done.agreement.share == pytest.approx(1)
    assert {outcome.kind for outcome in load.outcomes} == {"ok"}, summary(load.outcomes)
    assert serving(server) == first + rolls
    return load.outcomes


def refuse_under_load(server, tmp_path, rate=None):
    before = versions(server)
    with Load(server.grpc_url, cases(server), workers=2, rate=rate) as load:
        for engine, reason in bad_versions(tmp_path).values():
            with pytest.raises(RolloutError, match=reason) as refused:
                roll(server, engine)
            assert "\nAt:" not in str(refused.value)  # no Python trace
            assert versions(server) == before
            assert {name for name, _ in server.control.loaded()} == set(server.models)
    assert {outcome.kind for outcome in load.outcomes} == {"ok"}, summary(load.outcomes)
    return load.outcomes


@pytest.mark.more
def test_versions_roll_under_load(served):
    roll_under_load(served, 2, RATE)


@pytest.mark.more
def test_bad_versions_are_refused_under_load(served, tmp_path):
    refuse_under_load(served, tmp_path, RATE)
    roll(served, GOOD)  # and the good one after them is taken


def test_other_weights_when_wanted(served, tmp_path):
    engine, _ = bad_versions(tmp_path)["drifted weights"]
    retrained = roll(served, engine, min_agreement=0)
    assert retrained.agreement.share < 0.95
    assert roll(served, GOOD, min_agreement=0).before == retrained.version == serving(served) - 1  # and back


def test_a_version_that_fails_in_service_is_taken_back(served):
    before, number = versions(served), serving(served)
    with pytest.raises(RolloutError, match=f"was taken back, {number} serves again: clients get other instances"):
        roll(served, GOOD, same_engine=2)  # nothing can be as good
    assert (versions(served), serving(served)) == (before, number)
    assert learn(served, [IMAGES[0].read_bytes()], ("scores",))[0].expected["scores"].size


@pytest.mark.parametrize("end", [KeyboardInterrupt(), ConnectionError("gone")], ids=["Ctrl-C", "crash"])
def test_whatever_ends_it_the_version_is_taken_back(served, end):
    before, number = versions(served), serving(served)

    def say(line):
        if "is loaded" in line:
            assert serving(served) == number + 1
            raise end

    with pytest.raises(type(end)):
        roll(served, GOOD, say=say)
    assert (versions(served), serving(served)) == (before, number)


def test_a_server_that_does_not_answer_the_candidate_is_an_error_with_words(served):
    class Away(Control):
        def infer(self, model, *_, **__):
            raise CallError(f"no answer from {model}")

    away = Away(http_url=served.http_url, metrics_url="", access=served.access)
    with pytest.raises(RolloutError, match=f"{CANDIDATE}: no answer"):
        roll(served, GOOD, control=away)
    assert {name for name, _ in served.control.loaded()} == set(served.models)


def test_images_without_instances_prove_nothing(served):
    empty = {"empty.png": encode(np.zeros((64, 64, 3), np.uint8))}
    with pytest.raises(RolloutError, match="neither engine finds anything"):
        roll(served, GOOD, images=empty)


def test_one_at_a_time_and_what_a_killed_one_leaves(served):
    """A rollout killed while it judges changes nothing, and the next one goes through."""
    before, number = versions(served), serving(served)
    process = subprocess.Popen(command(served), stderr=subprocess.PIPE, text=True)
    assert "loading" in process.stderr.readline()
    with pytest.raises(RolloutError, match="another rollout, or m2f engine, is under way"):
        roll(served, GOOD)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (served.repository / ENGINE / ".rollout").mkdir()  # as if it had been writing
    assert roll(served, GOOD).version == number + 1
    assert set(versions(served)) == {*before, str(number + 1)}


def copies(server):
    """Triton's copies of the files of candidates of this server."""
    owners = {path: path.read_text() for path in Path("/tmp").glob(f"folder*/{OWNER_FILE}")}
    return [path for path, owner in owners.items() if owner.startswith(server.identity)]


def test_a_candidate_whose_process_is_killed_leaves_no_copy_of_the_engine(served):
    before = versions(served)
    images = [word for path in IMAGES for word in ("--image", str(path))]  # so many that they take a while
    process = subprocess.Popen(command(served, *images), stderr=subprocess.PIPE, text=True)
    while not served.control.is_ready(CANDIDATE):
        assert process.poll() is None
    assert copies(served)
    for stub in candidates(served):
        stub.kill()
    _, errors = process.communicate()
    assert process.returncode == 1
    assert CANDIDATE in errors
    assert copies(served) == []
    assert versions(served) == before
    assert roll(served, GOOD).agreement.share == pytest.approx(1)
    assert copies(served) == []


def candidates(server):
    """The processes of the candidate: their model is not in the repository."""
    found = []
    for child in psutil.Process(server.pid).children():
        with contextlib.suppress(psutil.Error):  # zombies have no command line
            words = child.cmdline()
            if len(words) > 1 and words[1].startswith("/tmp/folder") and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def command(server, *arguments, engine=GOOD):
    options = {
        "--model-repository": server.repository, "--url": f"http://{server.http_url}",
        "--admin-token-file": server.token_file, "--image": IMAGES[0],
    }  # fmt: skip
    flat = [str(word) for pair in options.items() for word in pair]
    return [sys.executable, "-c", "from m2f_cli.main import main; main()", "rollout", str(engine), *flat, *arguments]


def test_command(served, tmp_path):
    before = serving(served)
    done = subprocess.run(command(served, "--json"), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert (answer["before"], answer["version"], answer["agreement"]) == (before, before + 1, 1.0)
    assert answer["parity"]["matched"] == answer["parity"]["instances"] > 0
    for arguments, engine, code, message in (
        ([], tmp_path / "none.onnx", 1, "none.onnx: no such file"),
        ([], tmp_path / "model.plan", 1, "the server runs a model.onnx"),
        (["--image", str(tmp_path / "none.jpg")], GOOD, 1, "none.jpg: No such file"),
        (["--image", __file__], GOOD, 1, "not an image this server reads"),
        (["--model-repository", str(tmp_path)], GOOD, 1, "--model-repository is the folder that is served"),
        (["--url", "grpc://127.0.0.1:1"], GOOD, 2, "give http://host:port"),
        (["--url", "s3://bucket"], GOOD, 2, "s3:// is not a scheme of a server"),
        (["--url", '{"http": "127.0.0.1:1", "tls": true}'], GOOD, 1, "refused"),
    ):
        failed = subprocess.run(command(served, *arguments, engine=engine), capture_output=True, text=True, check=False)
        assert failed.returncode == code, failed.stderr
        assert message in failed.stderr
        assert "Traceback" not in failed.stderr


def test_a_wrong_secret(served):
    token = served.token_file.with_name("other")
    token.write_text("another-secret-of-16")
    arguments = ["--admin-token-file", str(token)]
    failed = subprocess.run(command(served, *arguments), capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "403" in failed.stderr
    assert "--admin-token-file" in failed.stderr


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_20_versions_and_6_bad_ones(served, tmp_path):
    refused = refuse_under_load(served, tmp_path)
    rolled = roll_under_load(served, 20)
    report(
        "20 version rolls and 6 bad versions under load",
        {"requests": len(refused) + len(rolled), "errors": 0, "wrong answers": 0, "bad versions refused": 6},
    )
