"""examples/ray: whatever goes away while a job runs, each image has one row in the end. Run by `make test-ray`."""

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_server import serving
from moto.server import ThreadedMotoServer
from pyarrow.dataset import dataset
from pyarrow.fs import FileSystem
from ray_cluster import ray_cluster
from until import until

from m2f.rle import encode_mask
from m2f_client import InvalidRequest, ServerError
from m2f_client.fake import result_of, stacked

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SCRIPT = Path(__file__).parents[1] / "examples/ray/segment.py"
WAIT_S = 120  # for an event; the machine may be busy


class Answers:
    """What the server says: image `i` is `i + 1` pixels wide and has `i % 3` instances.

    Attributes:
        asked: how often each image was asked for.
        errors: what to raise for an image, and how often.
        seconds: time that each answer takes.
    """

    def __init__(self, seconds=0.0, errors=()):
        self.asked, self.seconds, self.errors = Counter(), seconds, {i: list(one) for i, one in dict(errors).items()}

    def __call__(self, request):
        data = request.inputs["image"].item()
        if not data.startswith(b"image "):
            return stacked([result_of(np.ones((1, 1, 1), bool))])  # what the driver asks before it starts
        index = int(data.split()[1])
        self.asked[index] += 1
        time.sleep(self.seconds)
        if self.errors.get(index):
            raise self.errors[index].pop()
        masks = np.ones((index % 3, 1, index + 1), bool)
        return stacked([result_of(masks, labels=[0] * len(masks), scores=[0.5] * len(masks))])


class Job:
    """A folder of images, a folder of results, and the command."""

    def __init__(self, folder, environment, count):
        self.images, self.out, self._environment = folder / "images", folder / "out 100%20 #1", environment
        self.names = [f"{index % 3}/ü 100%20 #{index}.jpg" for index in range(count)]
        for index, name in enumerate(self.names):
            (self.images / name).parent.mkdir(parents=True, exist_ok=True)
            (self.images / name).write_bytes(b"image %d" % index)

    def start(self, url, *options, block=10):
        command = [
            sys.executable,
            SCRIPT,
            self.images,
            "--out",
            self.out,
            "--url",
            url,
            "--block",
            str(block),
            *options,
        ]
        return subprocess.Popen(
            list(map(str, command)),
            env=os.environ | self._environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def run(self, url, *options, **settings):
        """Run the command to its end."""
        return self.end(self.start(url, *options, **settings))

    def end(self, driver):
        """Wait for a command; return its exit code and what it says itself."""
        try:
            _, said = driver.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            driver.kill()
            pytest.fail(f"the job hangs: {driver.communicate()[1]}")
        print(said)
        return driver.returncode, [line for line in said.splitlines() if line.startswith(("m2f: ", "Error: "))]

    def rows(self):
        """All rows by name; none may have two."""
        rows = pq.read_table(self.out).to_pylist() if self.out.exists() else []
        by_name = {row["file_name"]: row for row in rows}
        assert len(by_name) == len(rows)
        return by_name

    def whole_rows(self):
        """Names with a row in a complete file. Files that are being written are passed over."""
        names = set()
        for path in self.out.glob("*.parquet"):
            with contextlib.suppress(pa.ArrowInvalid):
                names |= set(pq.read_table(path, columns=["file_name"], partitioning=None)["file_name"].to_pylist())
        return names

    def check_rows(self, *, failed=()):
        """Every image has one row, and it is that image's."""
        rows = self.rows()
        assert sorted(rows) == sorted(self.names)
        for index, name in enumerate(self.names):
            row = rows[name]
            if index in failed:
                assert row["error"]
                assert row["instances"] is None
            else:
                assert (row["width"], row["height"], row["error"]) == (index + 1, 1, None)
                assert row["instances"] == [self.instance(index)] * (index % 3)

    @staticmethod
    def instance(index):
        """The whole picture."""
        counts = encode_mask(np.ones((1, index + 1))).decode()
        box = [0, 0, index + 1, 1]
        return {"category_id": 1, "name": "cat", "score": 0.5, "bbox": box, "area": index + 1, "counts": counts}


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster() as started:
        started.add_node()
        yield started


@pytest.fixture
def bucket(monkeypatch):
    """An S3 of its own with a bucket: the file system, and what makes the URI of a folder in the bucket."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with contextlib.ExitStack() as stack:
        store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        store.start()
        stack.callback(store.stop)
        host, port = store.get_host_and_port()
        options = f"?endpoint_override={host}:{port}&scheme=http&allow_bucket_creation=true"
        filesystem, _ = FileSystem.from_uri(f"s3://key:secret@bucket{options}")
        filesystem.create_dir("bucket")
        yield filesystem, lambda folder: f"s3://key:secret@bucket/{folder}{options}"


@pytest.fixture
def make_job(tmp_path, cluster):
    return lambda count: Job(tmp_path, cluster.environment, count)


def cats(answer, **settings):
    return serving(answer, class_names='["cat"]', **settings)


def test_each_image_has_a_row_and_the_same_command_does_nothing_more(make_job):
    job, answers = make_job(25), Answers(errors={7: [InvalidRequest("not an image")], 8: [ServerError("once")]})
    (job.images / "notes.txt").write_text("no image")
    (job.images / ".hidden.jpg").write_text("no image")
    (job.images / "again").symlink_to(job.images)
    with cats(answers) as fake:
        for left in (25, 0):
            code, said = job.run(fake.url)
            assert code == 1
            assert said == [
                "m2f: files that are not images and are skipped: 1",
                f"m2f: {left} of 25 images to do",
                f"m2f: {job.names[7]}: not an image",
                "m2f: 25 images done, 1 of them failed",
            ]
            job.check_rows(failed=[7])
    assert answers.asked == {index: 2 if index == 8 else 1 for index in range(25)}  # 8: the server failed once


def test_what_is_killed_is_resumed(make_job):
    job, answers = make_job(200), Answers(seconds=0.05)
    with cats(answers) as fake:
        with job.start(fake.url) as driver:
            until(lambda: len(job.whole_rows()) >= 60, WAIT_S)
            driver.kill()
        done = job.whole_rows()
        next(job.out.glob("*.parquet")).with_name("cut.parquet").write_bytes(b"PAR1")  # as a kill may leave it
        code, said = job.run(fake.url)
        assert (code, said[-1]) == (0, "m2f: 200 images done, 0 of them failed")
    job.check_rows()
    assert all(answers.asked[job.names.index(name)] == 1 for name in done)


def test_a_server_may_be_away_for_ten_seconds(make_job):
    job, answers = make_job(200), Answers(seconds=0.05)
    with cats(answers) as fake:
        driver = job.start(fake.url)
        until(lambda: len(answers.asked) >= 60, WAIT_S)
    time.sleep(10)
    with cats(answers, port=int(fake.url.rpartition(":")[2])):
        assert job.end(driver)[0] == 0
    job.check_rows()


def test_a_job_stops_when_the_server_stays_away_and_is_resumed(make_job):
    job, answers = make_job(200), Answers(seconds=0.05)
    with cats(answers) as fake:
        driver = job.start(fake.url, "--wait", 1)
        until(lambda: len(answers.asked) >= 60, WAIT_S)
    code, said = job.end(driver)
    assert (code, len(said)) == (1, 2)  # what is to do, and the error
    assert "127.0.0.1" in said[1]
    assert said[1].endswith("; the same command resumes the job")
    with cats(answers) as fake:
        assert job.run(fake.url)[0] == 0
    job.check_rows()


def test_a_node_may_go_while_its_actors_start(tmp_path):
    """The actors of the first node hang where they import m2f_client; then the node is gone."""
    (tmp_path / "slow/m2f_client").mkdir(parents=True)
    started = tmp_path / "started"
    (tmp_path / "slow/m2f_client/__init__.py").write_text(f"import time; open({str(started)!r}, 'w'); time.sleep(999)")
    answers = Answers(seconds=0.01)
    with ray_cluster() as cluster, cats(answers) as fake:
        job = Job(tmp_path, cluster.environment, 100)
        doomed = cluster.add_node(PYTHONPATH=str(tmp_path / "slow"))
        driver = job.start(fake.url)
        until(started.exists, WAIT_S)
        assert not answers.asked
        cluster.add_node()
        cluster.kill_node(doomed)
        assert job.end(driver)[0] == 0
    job.check_rows()


def test_an_actor_may_fail_to_start(tmp_path):
    """The first process that imports m2f_client there cannot."""
    (tmp_path / "deadly/m2f_client").mkdir(parents=True)
    (tmp_path / "deadly/m2f_client/__init__.py").write_text(
        "import os, sys, importlib\n"
        f"sys.path.remove({str(tmp_path / 'deadly')!r})\n"
        "try:\n"
        f"    os.mkdir({str(tmp_path / 'died')!r})\n"
        "except FileExistsError:\n"
        "    del sys.modules['m2f_client']\n"
        "    importlib.import_module('m2f_client')\n"
        "else:\n"
        "    raise ImportError('the node goes down')\n"
    )
    with ray_cluster() as cluster, cats(Answers()) as fake:
        cluster.add_node(PYTHONPATH=str(tmp_path / "deadly"))
        job = Job(tmp_path, cluster.environment, 30)
        assert job.run(fake.url)[0] == 0
    assert (tmp_path / "died").exists()
    job.check_rows()


def test_a_node_may_go_while_its_actors_work(tmp_path):
    answers = Answers(seconds=0.05)
    with ray_cluster() as cluster, cats(answers) as fake:
        job = Job(tmp_path, cluster.environment, 200)
        doomed = cluster.add_node()
        driver = job.start(fake.url)
        until(lambda: len(answers.asked) >= 60, WAIT_S)
        cluster.add_node()
        cluster.kill_node(doomed)
        assert job.end(driver)[0] == 0
    job.check_rows()


def test_images_and_results_in_a_bucket(make_job, bucket):
    filesystem, uri = bucket
    for index in range(25):
        with filesystem.open_output_stream(f"bucket/photos/{index % 3}/ü 100%20 #{index}.jpg") as stream:
            stream.write(b"image %d" % index)
    job, answers = make_job(0), Answers()
    job.images, job.out = uri("photos"), uri("out")
    with cats(answers) as fake:
        for left in (25, 0):
            said = [f"m2f: {left} of 25 images to do", "m2f: 25 images done, 0 of them failed"]
            assert job.run(fake.url) == (0, said)
    names = dataset("bucket/out", filesystem=filesystem).to_table()["file_name"].to_pylist()
    assert sorted(names) == sorted(f"{index % 3}/ü 100%20 #{index}.jpg" for index in range(25))
    assert set(answers.asked.values()) == {1}


def test_more_actors_than_cpus_leave_room_for_the_writers(make_job):
    job = make_job(200)
    with cats(Answers()) as fake:
        assert job.run(fake.url, "--actors", 20)[0] == 0
    job.check_rows()


def test_images_can_be_named_and_results_have_one_setting(make_job, tmp_path):
    job = make_job(3)
    (tmp_path / "names.txt").write_text(f"{job.names[1]}\nmissing.jpg\n{job.names[1]}\n")
    with cats(Answers()) as fake:
        code, said = job.run(fake.url, "--list", tmp_path / "names.txt", "--parameter", "score_threshold=0.5")
        assert (code, said[-1]) == (1, "m2f: 2 images done, 1 of them failed")
        rows = job.rows()
        assert sorted(rows) == [job.names[1], "missing.jpg"]
        assert "missing.jpg" in rows["missing.jpg"]["error"]
        assert rows[job.names[1]]["parameters"] == '{"score_threshold": 0.5}'
        code, said = job.run(fake.url)
    assert code == 2
    assert said[-1].endswith('has results with parameters {"score_threshold": 0.5}, not {}; choose another --out')


def test_another_programs_files_are_left_alone(make_job):
    job = make_job(1)
    job.out.mkdir()
    pq.write_table(pa.table({"a": [1]}), job.out / "a.parquet")
    (job.out / "incomplete.parquet").write_bytes(b"PAR1")
    with cats(Answers()) as fake:
        code, said = job.run(fake.url)
    assert (code, said[-1]) == (2, f"Error: {job.out}/a.parquet is not a file of this job; choose another --out")
    assert len(list(job.out.iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"url": "grpc://127.0.0.1:1"}, 1, "127.0.0.1:1"),
        ({"url": "ftp://a"}, 1, "ftp"),
        ({"images": "nowhere"}, 1, "nowhere"),
        ({"images": Path(__file__).parent}, 1, "no images"),
        ({"images": "s4://bucket/a"}, 2, "s4://bucket/a"),
    ],
)
def test_what_is_wrong_is_said_before_ray_starts(make_job, changes, code, said):
    job = make_job(1)
    with cats(Answers()) as fake:
        job.images = changes.get("images", job.images)
        got, lines = job.run(changes.get("url", fake.url))
    assert (got, len([line for line in lines if line.startswith("Error")])) == (code, 1)
    assert said in lines[-1]
    assert not job.out.exists()
