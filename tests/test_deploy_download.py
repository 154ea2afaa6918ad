"""The chart's init container: rclone with its arguments copies a repository from a store, S3 as moto serves it."""

import os
import subprocess
import sysconfig
from pathlib import Path

import boto3
import pytest
from chart import containers, objects, rendered, template
from moto.server import ThreadedMotoServer

RCLONE = Path(sysconfig.get_path("scripts"), "rclone")
FILES = {"parts/config.pbtxt": b"name", "parts_engine/1/model.plan": bytes(1000)}


@pytest.fixture(scope="module")
def variables():
    """What the Secret has, for a store whose bucket `models` has a repository in its folder `parts`."""
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    address = "http://{}:{}".format(*moto.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in keys.items():
            environment.setenv(name, value)
        store = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
    store.create_bucket(Bucket="models")
    for name, content in {**{f"parts/{name}": content for name, content in FILES.items()}, "other/x": b""}.items():
        store.put_object(Bucket="models", Key=name, Body=content)
    yield keys | {"RCLONE_S3_PROVIDER": "Other", "RCLONE_S3_ENDPOINT": address}
    moto.stop()


def run(arguments, folder, variables):
    """Run rclone as the container does, with a folder in the place of /models."""
    arguments = [
        argument.replace("/models/", f"{folder}/") if argument[0] == "/" else argument for argument in arguments
    ]
    return subprocess.run(
        [RCLONE, *arguments], env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False
    )


def arguments_for(url):
    _, named = containers(objects(template(repository={"from": "download", "download": {"url": url}})))
    return named["download"]["args"]


def test_the_repository_is_copied(variables, tmp_path):
    _, named = containers(rendered("download"))
    for _ in range(2):  # a container that was stopped is run again
        assert run(named["download"]["args"], tmp_path, variables).returncode == 0
        found = [path for path in (tmp_path / "repository").rglob("*") if path.is_file()]
        assert {str(path.relative_to(tmp_path / "repository")): path.read_bytes() for path in found} == FILES


def test_a_bucket_that_is_not_there_is_an_error(variables, tmp_path):
    done = run([*arguments_for("s3://gone/parts"), "--retries=1"], tmp_path, variables)
    assert done.returncode != 0
    assert "bucket gone" in done.stderr


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("s3://models", ":s3,env_auth=true:models"),
        ("s3://models/a/b", ":s3,env_auth=true:models/a/b"),
        ("gs://models/parts", ":gcs,env_auth=true:models/parts"),
        ("az://models/parts", ":azureblob,env_auth=true:models/parts"),
    ],
)
def test_each_store_has_its_name_in_rclone(url, source):
    assert source in arguments_for(url)


@pytest.mark.parametrize("store", ["s3", "gcs", "azureblob"])
def test_rclone_knows_the_option(store):
    known = subprocess.run([RCLONE, "help", "backend", store], capture_output=True, text=True, check=True).stdout
    assert f"--{store}-env-auth" in known
