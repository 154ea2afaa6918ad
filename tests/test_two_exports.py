"""Two exports in one repository, served at once: each answers as it does alone, whatever happens to the other.

One is the embedded model, which is mmdetection's. The other is exported from files of the original Mask2Former: it is
as large, and its weights are random.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import IMAGES
from detectron2_models import EMBEDDED_SIZE, shapes_of, smooth_picture, weights, write_config, write_pickle
from exports import compare_on, m2f_export
from exposition import read
from load import Load, learn, summary
from pictures import encode
from staging import put_embedded
from supervised import supervised
from until import until

from m2f_server import serve
from m2f_server.access import read_access
from m2f_server.control import Control
from m2f_server.rollout import roll_out
from m2f_server.serve_errors import RolloutError

pytestmark = [pytest.mark.server, pytest.mark.torch, pytest.mark.more, pytest.mark.filterwarnings("ignore")]

FIRST, SECOND = "mask2former", "parts"
OUTPUTS = (("scores", "labels", "boxes", "rle", "class_names"), ("masks", "panoptic", "segments", "semantic"))
PICTURES = {path.name: path.read_bytes() for path in IMAGES[:2]}
RATE = 3  # requests a second


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both") / "mine"
    put_embedded(folder, FIRST)
    config = write_config(tmp_path_factory.mktemp("original"), "r50", EMBEDDED_SIZE)
    checkpoint = write_pickle(config.with_name("model_final.pkl"), weights(shapes_of(config)))
    picture = config.with_name("picture.png")
    picture.write_bytes(encode(smooth_picture(160, 220)))
    exact = ["--layout", "float32_chw", "--size", 256, 256]  # padding is 0, not the nearest pixel
    named = ["--classes", config.with_name("classes.txt")]
    named[1].write_text("circle\nsquare\ntriangle\nstar\nring\n")
    options = ["--name", SECOND, "--repository", folder, *exact, *named]
    done = m2f_export(config, checkpoint, *options, *compare_on([picture]))
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def alone(repository, server):
    """What each model answers where it is the only one."""
    pictures = list(PICTURES.values())
    with serve(
        model_repository=repository, config_name="cpu", load=[SECOND], http_port=0, grpc_port=0, metrics_port=0
    ) as other:
        assert other.public == [SECOND]
        cases = {
            FIRST: learn(server, pictures, *OUTPUTS, model=FIRST),
            SECOND: learn(other, pictures, *OUTPUTS, model=SECOND, score_threshold=0.0),
        }
    assert all(case.expected["scores"].size for found in cases.values() for case in found if "scores" in case.outputs)
    return cases


@pytest.fixture(scope="module")
def running(tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp("serve")
    (folder / "token").write_text("0123456789abcdef")
    with supervised(folder, f"--admin-token-file={folder / 'token'}", repository=repository) as started:
        started.control = Control(http_url=started.http_url, metrics_url="", access=read_access(folder / "token"))
        yield started


def assert_well(load):
    assert {outcome.kind for outcome in load.outcomes} == {"ok"}, summary(load.outcomes)


def wait_for_answers(load, number):
    """Wait until so many more requests are answered."""
    begun = len(load.outcomes)
    until(lambda: len(load.outcomes) >= begun + number, timeout=120)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_each_answers_as_it_does_alone(running, alone, protocol):
    url = {"grpc": running.grpc_url, "http": running.http_url}[protocol]
    cases = [case for both in zip(*alone.values(), strict=True) for case in both]
    with Load(url, cases, protocol=protocol) as load:
        wait_for_answers(load, len(cases))
    assert_well(load)
    assert running.announced["public"] == [FIRST, SECOND]
    assert [running.probe(f"ready/{name}")[0] for name in alone] == [200, 200]


def test_one_is_killed_and_reloaded_while_the_other_answers(running, alone):
    """Over both protocols; then the one that was hurt answers as before."""
    with (
        Load(running.grpc_url, alone[FIRST], rate=RATE) as load,
        Load(running.http_url, alone[FIRST], rate=RATE, protocol="http") as over_http,
    ):
        for step in ("postprocess", "engine"):
            began = time.time()
            running.stubs()[f"{SECOND}_{step}"].kill()
            running.wait_for("stub_lost", since=began, model=f"{SECOND}_{step}")
            assert running.probe(f"ready/{FIRST}")[0] == 200
            running.wait_for("reloaded", since=began, model=f"{SECOND}_{step}")
            running.wait_for("ready", since=began, model=SECOND)
        wait_for_answers(load, 2)
    assert_well(load)
    assert_well(over_http)
    with Load(running.grpc_url, alone[SECOND]) as again:
        wait_for_answers(again, len(alone[SECOND]))
    assert_well(again)
    metrics = read(running.at_health("metrics"))
    assert metrics.values("m2f_ready") == [1, 1, 1]
    assert metrics.total("m2f_events_total", event="stub_lost", model=f"{SECOND}_engine") == 1
    assert metrics.total("m2f_events_total", event="canary_failed", model=FIRST) == 0
    assert metrics.total("m2f_restarts_total") == 0


def roll(running, repository, model=None, engine=FIRST):
    file = repository / f"{engine}_engine/1/model.onnx"
    control = running.control
    return roll_out(file, repository=repository, control=control, images=PICTURES, min_agreement=0.95, model=model)


def versions(running, model):
    return [version for name, version in running.control.loaded() if name == model]


def test_one_is_rolled_while_both_answer(running, repository, alone):
    cases = [case for both in zip(*alone.values(), strict=True) for case in both]
    with Load(running.grpc_url, cases, rate=RATE) as load:
        done = roll(running, repository, model=FIRST)
        assert (done.model, done.before, done.version) == (FIRST, 1, 2)
        wait_for_answers(load, 4)
    assert_well(load)
    assert (versions(running, f"{FIRST}_engine"), versions(running, f"{SECOND}_engine")) == (["2"], ["1"])
    assert not (repository / f"{SECOND}_engine/2").exists()


def test_both_are_rolled_at_once_while_both_answer(running, repository, alone):
    before = {name: max(map(int, versions(running, f"{name}_engine"))) for name in (FIRST, SECOND)}
    cases = [case for both in zip(*alone.values(), strict=True) for case in both]
    with Load(running.grpc_url, cases, rate=RATE) as load, ThreadPoolExecutor() as pool:
        rollouts = [pool.submit(roll, running, repository, model=name, engine=name) for name in before]
        done = {one.result().model: one.result() for one in rollouts}
        wait_for_answers(load, 4)
    assert_well(load)
    for name, version in before.items():
        assert (done[name].before, done[name].version) == (version, version + 1)
        assert versions(running, f"{name}_engine") == [str(version + 1)]


def test_a_rollout_says_which_models_there_are(running, repository):
    both = f"this server has {FIRST}, {SECOND}"
    with pytest.raises(RolloutError, match=f"{both}: choose one with --model"):
        roll(running, repository)
    for name in ("part", f"{SECOND}_engine", f"{SECOND}_tensor"):
        with pytest.raises(RolloutError, match=f"--model {name}: {both}"):
            roll(running, repository, model=name)
