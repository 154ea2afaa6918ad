"""How an export takes its place among the models of a repository."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from staging import contents, fill, put

from m2f.contract import models_of
from m2f_export import repository_place as place
from m2f_export.export_errors import ExportError

HERE = Path(__file__).parent


@pytest.fixture
def mine(tmp_path):
    """A repository with an export named parts and a model of other origin."""
    put(tmp_path / "mine", "parts")
    (tmp_path / "mine/resnet/1").mkdir(parents=True)
    (tmp_path / "mine/resnet/config.pbtxt").write_text("resnet")
    (tmp_path / "mine/resnet/1/model.onnx").symlink_to("../shared.onnx")
    (tmp_path / "mine/.gitignore").write_text("*.plan")
    return tmp_path / "mine"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["at once", "in turn"])
def exchange(request, monkeypatch):
    """With a file system that exchanges folders in one step, and without."""
    if request.param == "in turn":
        monkeypatch.setattr(place, "exchange_at_once", lambda *_: False)


# Adding


@pytest.mark.usefixtures("exchange")
def test_a_second_name_is_added_and_all_else_stays(mine):
    before, stats = contents(mine), {path: path.lstat() for path in mine.rglob("*")}
    put(mine, "left", "2", head=True)
    after = contents(mine)
    assert {path: text for path, text in after.items() if not path.startswith("left")} == before
    assert {path.split("/")[0] for path in after.keys() - before.keys()} == set(models_of("left", head=True))
    assert names(mine.parent) == ["mine"]
    for path, was in stats.items():
        now = path.lstat()
        assert (now.st_mode, now.st_uid, now.st_mtime_ns) == (was.st_mode, was.st_uid, was.st_mtime_ns), path
        assert path.is_dir() or now.st_ino == was.st_ino  # a link, not a copy
    assert (mine / "resnet/1/model.onnx").readlink() == Path("../shared.onnx")


@pytest.mark.usefixtures("exchange")
def test_an_export_replaces_its_own_models_only(mine):
    put(mine, "parts", "with a head", head=True)
    others = {path: text for path, text in contents(mine).items() if not path.startswith("parts")}
    put(mine, "parts", "2")
    after = contents(mine)
    assert not (mine / "parts_head").exists()
    assert others.items() <= after.items()
    assert {text for path, text in after.items() if path.startswith("parts") and "export" not in path} == {"2"}


def test_copies_where_the_file_system_has_no_hard_links(mine, monkeypatch):
    def no_link(*_, **__):
        raise PermissionError

    before = contents(mine)
    monkeypatch.setattr(os, "link", no_link)
    put(mine, "left")
    assert before.items() <= contents(mine).items()
    assert (mine / "resnet/1/model.onnx").readlink() == Path("../shared.onnx")


@pytest.mark.parametrize("name", ["mask2former", "parts"])
def test_the_layout_before_there_were_names(tmp_path, name):
    mine = tmp_path / "mine"
    put(mine, "mask2former", "old", head=True)
    (mine / "mask2former/export.json").rename(mine / "export.json")
    shutil.copytree(mine / "mask2former_raw", mine / "mask2former_mine")
    shutil.copytree(mine / "mask2former_raw", mine / "mask2former_packed_masks")  # a step of those exports
    before = contents(mine)
    put(mine, name, "new")
    after = contents(mine)
    assert (mine / "mask2former_mine").is_dir()
    if name == "parts":
        assert before.items() <= after.items()
    else:
        assert not (mine / "export.json").exists()
        assert not (mine / "mask2former_head").exists()
        assert not (mine / "mask2former_packed_masks").exists()
        assert after["mask2former/config.pbtxt"] == "new"


def test_an_empty_folder_is_a_repository(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o711)
    put(tmp_path / "mine", "parts")
    assert set(names(tmp_path / "mine")) == set(models_of("parts", head=False))
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o711


def test_two_exports_at_a_time_lose_none(mine):
    both = threading.Barrier(2)

    def export(name):
        with place.staged(mine, models_of(name, head=False)) as stage:
            fill(stage, name, name)
            both.wait(60)

    threads = [threading.Thread(target=export, args=[name]) for name in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {*(model for name in ("parts", "left", "right") for model in models_of(name, head=False))}
    assert set(names(mine)) == {*expected, "resnet", ".gitignore"}


def test_it_waits_for_a_rollout(mine):
    descriptor = os.open(mine / "parts_engine", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as m2f rollout does
    thread = threading.Thread(target=put, args=[mine, "left"])
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    assert not (mine / "left").exists()
    (mine / "parts_engine/2").mkdir()
    os.close(descriptor)
    thread.join()
    assert (mine / "left").is_dir()
    assert (mine / "parts_engine/2").is_dir()


# Refusals


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("resnet", False, r"mine/resnet was not made by m2f export: it is not replaced; give another --name"),
        ("parts_tensor", False, r"mine/parts_tensor belongs to the export 'parts': it is not replaced"),
        ("parts_engine", False, r"mine/parts_engine belongs to the export 'parts'"),
        ("left", False, r"mine/left_raw was not made by m2f export"),
        ("up", True, r"mine/up_head belongs to the export 'up_head'"),
    ],
)
def test_a_model_of_that_name_is_not_replaced(mine, name, head, message):
    shutil.copytree(mine / "resnet", mine / "left_raw", symlinks=True)
    put(mine, "up_head")
    before = contents(mine)
    with pytest.raises(ExportError, match=message):
        place.staged(mine, models_of(name, head=head)).__enter__()
    assert contents(mine) == before


@pytest.mark.parametrize("report", ["", "[]", "{}", '{"models": 1}', '{"models": ["resnet"]}', '{"models": [[]]}'])
def test_a_report_that_cannot_be_believed(mine, report):
    (mine / "parts/export.json").write_text(report)
    with pytest.raises(ExportError, match=r"mine/parts/export.json is not the report of an export of that name"):
        put(mine, "left")


@pytest.mark.parametrize("entry", ["photo.jpg", "photos"])
def test_what_is_no_repository_is_never_replaced(tmp_path, entry):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photo.jpg").touch()
    for path in {"photo.jpg", "photos"} - {entry}:
        (tmp_path / path).rename(tmp_path / f".{path}")
    with pytest.raises(ExportError, match=rf"is not a model repository: {entry} in it is no model"):
        put(tmp_path)
    assert (tmp_path / entry).exists()


def test_a_file_is_no_repository(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(ExportError, match=r"mine is not a folder"):
        put(tmp_path / "mine")


@pytest.mark.parametrize("below", [".", "parts/1"])
def test_the_folder_that_a_shell_is_in_is_not_replaced(mine, monkeypatch, below):
    """The shell would go on in the old one, which is removed."""
    monkeypatch.chdir(mine / below)
    with pytest.raises(ExportError, match=r"mine is the folder you are in, which would be replaced"):
        put(mine, "left")


def test_a_place_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"file cannot be used: "):
        put(tmp_path / "file" / "mine")


# Failures


def test_it_appears_when_all_is_well_and_nothing_else_stays(tmp_path):
    target = tmp_path / "deep" / "mine"
    with place.staged(target, models_of("parts", head=False)) as stage:
        fill(stage, "parts", "1")
        (stage / "parts/1/__pycache__").mkdir()
        assert not target.exists()
    assert names(target.parent) == ["mine"]
    assert not list(target.rglob("__pycache__"))


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("real")
    for name in ("a", "b"):
        put(tmp_path / "link", name)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/a").is_dir()
    assert (tmp_path / "real/b").is_dir()
    assert names(tmp_path) == ["link", "real"]


def test_a_failure_leaves_the_old_one(mine):
    before = contents(mine)

    def fail():
        with place.staged(mine, models_of("parts", head=False)) as stage:
            fill(stage, "parts", "2")
            raise ExportError("drifts")

    with pytest.raises(ExportError, match="drifts"):
        fail()
    assert contents(mine) == before
    assert names(mine.parent) == ["mine"]


@pytest.mark.usefixtures("exchange")
def test_a_stage_that_cannot_be_moved_leaves_the_old_one(mine):
    before = contents(mine)
    with pytest.raises(FileNotFoundError), place.staged(mine, models_of("parts", head=False)) as stage:
        stage.rmdir()
    assert contents(mine) == before
    assert names(mine.parent) == ["mine"]


def test_what_a_killed_export_left_is_removed_by_the_next(mine):
    script = f"import sys; sys.path.insert(0, {str(HERE)!r}); import os, signal; from staging import *\n"
    script += f"with staged(Path({str(mine)!r}), models_of('left', head=False)) as stage:\n"
    script += "  fill(stage, 'left', '1'); os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert len(names(mine.parent)) == 2
    with place.staged(mine, models_of("right", head=False)) as stage:
        fill(stage, "right", "2")
        put(mine, "left")  # does not take the other's stage for a killed one's
    assert names(mine.parent) == ["mine"]
    assert (mine / "right").is_dir()


def killed_exports(target, kills, rng):
    """Kill an export that has replaced its models at least once; yield the repository after each kill."""
    for _ in range(kills):
        command = [sys.executable, HERE / "staging.py", "put", target, "parts"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as export:
            export.stdout.readline()
            try:
                export.wait(rng.uniform(0, 0.1))
            except subprocess.TimeoutExpired:
                export.kill()
        yield contents(target)


@pytest.mark.parametrize("kills", [6, pytest.param(300, marks=pytest.mark.chaos)])
def test_killed_at_any_moment_it_leaves_the_old_or_the_new_repository(mine, kills):
    others = {path: text for path, text in contents(mine).items() if not path.startswith("parts")}
    files = set(contents(mine))
    for found in killed_exports(mine, kills, random.Random(0)):
        assert set(found) == files
        assert others.items() <= found.items()
        texts = {text for path, text in found.items() if path.startswith("parts") and not path.endswith(".json")}
        assert len(texts) == 1, texts
        assert {json.loads(found["parts/export.json"])["content"]} == texts
        assert texts != {"1"}
    put(mine, "parts", "whole")
    assert names(mine.parent) == ["mine"]


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        os.geteuid()
        or not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "m2f", disk], check=False).returncode
    ):
        pytest.skip("a tmpfs can be mounted by root only")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_the_old_one(small_disk):
    put(small_disk / "mine")
    before = contents(small_disk)

    def fill_up():
        with place.staged(small_disk / "mine", models_of("parts", head=False)) as stage:
            (stage / "model.onnx").write_bytes(bytes(2 << 20))

    with pytest.raises(ExportError, match=r"no space left in .*disk; .*mine is as it was"):
        fill_up()
    assert contents(small_disk) == before
    assert names(small_disk) == ["mine"]


@pytest.mark.parametrize("repository", ["disk", "."])
def test_a_mounted_model_or_repository_is_refused(small_disk, repository):
    """Its files would be removed with the old repository."""
    (small_disk / "1").mkdir()
    with pytest.raises(ExportError, match=r"disk is a mount point, which cannot be replaced"):
        put(small_disk.parent / repository, "parts")
    assert names(small_disk) == ["1"]
