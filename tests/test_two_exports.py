"""Two exports in one repository, served at once: each answers as it does alone, whatever happens to the other."""

import shutil
import time

import pytest
from conftest import IMAGES, ROOT
from exposition import read
from load import Load, learn, summary
from renamed import add_copy
from supervised import supervised
from until import until

from m2f_server import serve
from m2f_server.access import read_access
from m2f_server.control import Control
from m2f_server.rollout import roll_out
from m2f_server.serve_errors import RolloutError

pytestmark = [pytest.mark.server, pytest.mark.more]

FIRST, SECOND = "mask2former", "parts"
FREE_PORTS = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
OUTPUTS = (("scores", "labels", "boxes", "rle", "class_names"), ("masks", "panoptic", "segments", "semantic"))
PICTURES = {path.name: path.read_bytes() for path in IMAGES[:2]}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The embedded model, and the same once more, which gives one instance at most."""
    folder = tmp_path_factory.mktemp("both") / "model_repository"
    shutil.copytree(ROOT / "model_repository", folder)
    add_copy(folder, SECOND, keep_top_k="1")
    return folder


@pytest.fixture(scope="module")
def alone(repository):
    """What each model answers where it is the only one that is loaded."""
    cases = {}
    for name in (FIRST, SECOND):
        with serve(model_repository=repository, config_name="cpu", load=[name], **FREE_PORTS) as server:
            assert server.public == [name]
            cases[name] = learn(server, list(PICTURES.values()), *OUTPUTS, model=name)
    assert not all(ours.is_answered_by(theirs.expected) for ours, theirs in zip(*cases.values(), strict=True))
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


@pytest.mark.parametrize(("hurt", "well"), [(FIRST, SECOND), (SECOND, FIRST)])
def test_a_stub_killed_in_one_while_the_other_answers(running, alone, hurt, well):
    with Load(running.grpc_url, alone[well]) as load, Load(running.http_url, alone[well], protocol="http") as over_http:
        wait_for_answers(load, 2)
        for step in ("postprocess", "engine", "preprocess"):
            began = time.time()
            running.stubs()[f"{hurt}_{step}"].kill()
            running.wait_for("stub_lost", since=began, model=f"{hurt}_{step}")
            assert running.probe(f"ready/{well}")[0] == 200
            running.wait_for("reloaded", since=began, model=f"{hurt}_{step}")
            running.wait_for("ready", since=began, model=hurt)
        wait_for_answers(load, 2)
    assert_well(load)
    assert_well(over_http)
    with Load(running.grpc_url, alone[hurt]) as again:
        wait_for_answers(again, len(alone[hurt]))
    assert_well(again)
    metrics = read(running.at_health("metrics"))
    assert metrics.values("m2f_ready") == [1, 1, 1]
    assert metrics.total("m2f_events_total", event="stub_lost", model=f"{hurt}_engine") == 1
    assert metrics.total("m2f_events_total", event="canary_failed", model=well) == 0
    assert metrics.total("m2f_restarts_total") == 0


def roll(running, repository, engine=None, **options):
    engine = engine or repository / f"{SECOND}_engine/1/model.onnx"
    usual = {"repository": repository, "control": running.control, "images": PICTURES, "min_agreement": 0.95}
    return roll_out(engine, **{**usual, **options})


def versions(running, model):
    return [version for name, version in running.control.loaded() if name == model]


def test_one_is_rolled_while_both_answer(running, repository, alone):
    cases = [case for both in zip(*alone.values(), strict=True) for case in both]
    with Load(running.grpc_url, cases) as load:
        wait_for_answers(load, 2)
        done = roll(running, repository, model=SECOND)
        assert (done.model, done.before, done.version) == (SECOND, 1, 2)
        wait_for_answers(load, len(cases))
    assert_well(load)
    assert (versions(running, f"{FIRST}_engine"), versions(running, f"{SECOND}_engine")) == (["1"], ["2"])
    assert not (repository / f"{FIRST}_engine/2").exists()


def test_a_rollout_says_which_models_there_are(running, repository):
    both = f"this server has {FIRST}, {SECOND}"
    with pytest.raises(RolloutError, match=f"{both}: choose one with --model"):
        roll(running, repository)
    for name in ("part", f"{SECOND}_engine", f"{SECOND}_tensor"):
        with pytest.raises(RolloutError, match=f"--model {name}: {both}"):
            roll(running, repository, model=name)
