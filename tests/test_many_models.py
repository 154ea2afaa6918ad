"""Several public models in one server: what happens to one of them is no trouble of the others."""

import os
import signal
import threading

import numpy as np
import pytest
from supervised import supervised
from throwaway import FREE_PORTS
from until import until
from watched import MODEL, ask, watched, write, write_ensemble

from m2f_server import ModelLoadError, RepositoryError, configuration, serve
from m2f_server.missed import Missed
from m2f_server.public_models import PublicModels
from m2f_server.repository_check import check_repository
from m2f_server.timing import Timing

BROKEN = "raise ValueError('no weights')"


@pytest.fixture
def repository(tmp_path):
    """Two public models, `public` and `second`, each with a step of its own."""
    write_ensemble(tmp_path / "models", "public", "worker")
    write_ensemble(tmp_path / "models", "second", "second_worker")
    return tmp_path / "models"


def named(events, name):
    return [fields for event, fields in events if event == name]


@pytest.mark.server
def test_one_is_mended_unloaded_and_loaded_and_the_other_answers(repository):
    with watched(repository) as (server, own, events, ended):
        until(lambda: own.troubles == {"public": "", "second": ""})
        os.kill(own.stubs.of("second_worker")[0].pid, signal.SIGKILL)
        until(lambda: own.troubles["second"] == "reloading second_worker")
        assert own.troubles["public"] == ""
        assert own.trouble == "reloading second_worker"
        assert ask(server) == [[24, 32]]
        until(lambda: not own.trouble)
        assert ask(server, model="second") == [[24, 32]]
        assert {fields["model"] for fields in named(events, "stub_lost")} == {"second_worker"}

        server.control.unload("second")
        until(lambda: list(own.troubles) == ["public"])
        assert ask(server) == [[24, 32]]
        server.control.load("second")
        until(lambda: own.troubles == {"public": "", "second": ""})
        assert not named(events, "canary_failed")
        server.control.unload("public")
        server.control.unload("second")
        until(lambda: own.trouble == "no public model is loaded")
        assert not ended


@pytest.mark.server
@pytest.mark.more
def test_one_beyond_help_leaves_the_server_to_the_other(repository):
    """First a step that cannot be reloaded, then one that answers wrong; each until its cause is gone."""
    flag, file = repository / "wrong", repository / "second_worker/1/model.py"
    good = MODEL.replace("[[24, 32]]", f"[[1, 1]] if os.path.exists({str(flag)!r}) else [[24, 32]]")
    file.write_text(good)
    with watched(repository, first_rest_s=0.1, longest_rest_s=0.2) as (server, own, events, ended):
        until(lambda: not own.trouble)
        file.write_text(BROKEN)
        os.kill(own.stubs.of("second_worker")[0].pid, signal.SIGKILL)
        until(lambda: [fields["attempt"] for fields in named(events, "reload_failed")][:4] == [1, 2, 3, 1])
        assert own.troubles["public"] == ""
        assert ask(server) == [[24, 32]]
        file.write_text(good)
        until(lambda: not own.trouble)
        assert ask(server, model="second") == [[24, 32]]

        before = len(named(events, "reloaded"))
        flag.touch()
        until(lambda: named(events, "reloaded")[before + 1 :])
        assert own.troubles["public"] == ""
        assert max(fields["times"] for fields in named(events, "canary_failed")) >= Timing().failures
        flag.unlink()
        until(lambda: not own.trouble)
        assert {fields["model"] for fields in named(events, "reloaded")} == {"second_worker"}
        assert not ended


@pytest.mark.server
def test_what_does_not_load_is_named_and_the_rest_is_served(tmp_path, repository):
    write(repository, "foreign", 'backend: "python"', BROKEN)
    (repository / "stray").mkdir()
    with supervised(tmp_path, repository=repository, config_name=None) as running:
        assert running.announced["public"] == ["public", "second"]
        lost = {event["model"]: event["why"] for event in running.events() if event["event"] == "not_loaded"}
        assert "no weights" in lost["foreign"]
        assert "move this one out" in lost["stray"]
        assert running.probe("ready/second")[0] == 200
        assert "there are: public, second" in running.probe("ready/third")[1]["error"]


@pytest.mark.server
def test_an_export_that_does_not_load_ends_the_first_start_and_no_other(repository):
    file = repository / "second_worker/1/model.py"
    file.write_text(BROKEN)
    (repository / "second/export.json").write_text("{}")
    with (
        pytest.raises(ModelLoadError, match=r"second_worker.*no weights"),
        serve(model_repository=repository, **FREE_PORTS),
    ):
        pass
    with watched(repository, strict=False, first_rest_s=0.1) as (server, own, events, ended):
        assert own.troubles == {"public": "", "second": "second did not load"}
        assert {"second_worker", "second"} == {fields["model"] for fields in named(events, "not_loaded")}
        file.write_text(MODEL)
        until(lambda: not own.trouble)
        assert ask(server, model="second") == [[24, 32]]
        assert not ended


@pytest.mark.server
def test_load_takes_an_ensemble_and_its_steps(repository):
    write(repository, "alone", 'backend: "python"', BROKEN)
    with serve(model_repository=repository, load=["second"], **FREE_PORTS) as server:
        assert server.models == ["second", "second_worker"]
        assert server.public == ["second"]
        assert ask(server, model="second") == [[24, 32]]
        assert "is not found" in ask(server)
    broken = pytest.raises(ModelLoadError, match="'alone' did not load")
    with broken, serve(model_repository=repository, load=["public", "alone"], **FREE_PORTS):
        pass


def test_load_of_an_unknown_model_lists_those_that_are(repository):
    with pytest.raises(RepositoryError, match=r"--load third: .*models there: public, second, second_worker, worker"):
        check_repository(repository, config_name=None, load=["public", "third"])


def test_an_engine_of_other_origin_does_not_choose_the_configuration_of_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(configuration, "gpu_trouble", lambda: "no GPU")
    for name in ("foreign", "parts_engine"):
        write(tmp_path, name, 'platform: "tensorrt_plan"')
    assert configuration.choose(None, tmp_path).label == "tensorrt"
    (tmp_path / "parts_engine/configs").mkdir()
    (tmp_path / "parts_engine/configs/cpu.pbtxt").write_text('backend: "python"')
    assert configuration.choose(None, tmp_path).label == "cpu"


class Hanging:
    """A server of ten public models; those whose name begins with `hang` do not answer until told to."""

    def __init__(self):
        self.release, self.waiting, self.answered_by = threading.Event(), set(), []

    def index(self):
        names = [f"hang{number}" for number in range(9)] + ["well"]
        return [{"name": name, "version": "1", "state": "READY"} for name in names]

    def config(self, model):
        step = {"model_name": f"{model}_step", "input_map": {"image": "image"}, "output_map": {"size": "size"}}
        tensors = {"input": [{"name": "image", "data_type": "TYPE_STRING"}], "output": [{"name": "size"}]}
        return {"name": model, **tensors, "ensemble_scheduling": {"step": [step]}}

    def answered(self):
        return {}

    pending = answered

    def infer(self, model, *_, **__):
        if model.startswith("hang"):
            self.waiting.add(model)
            self.release.wait()
        self.answered_by.append(model)
        return {"size": np.array([[24, 32]])}


class NoRepairs:
    under_way = frozenset()

    def finished(self, _):
        return 0

    def well(self, _):
        pass


class NoStubs:
    def processor_seconds(self, models):
        return dict.fromkeys(models, 0.0)


def test_models_that_hang_keep_no_other_canary_waiting():
    """All canaries are under way at once, so ten that hang are found as soon as one."""
    control = Hanging()
    models = PublicModels(
        control=control, missing=[], stubs=NoStubs(), repairs=NoRepairs(), event=lambda *_, **__: None,
        missed=Missed(lambda *_: None, 1.0), timing=Timing(canary_period_s=0.01, canary_rest=0.0),
    )  # fmt: skip
    models.start()
    try:
        until(lambda: len(control.waiting) == 9 and control.answered_by.count("well") > 3)
        assert models.troubles["well"] == ""
        assert models.troubles["hang0"] == "the first canary is under way"
        assert models.good_since is not None
    finally:
        control.release.set()
        models.stop()
