"""The public models of a server: which there are, what they are, and the hint for a model that is not there."""

import asyncio
import json

import pytest
from click.testing import CliRunner
from fake_triton import KINDS, SCHEMES, ask

from m2f_cli.main import main
from m2f_client import InvalidRequest, ModelNotFound, ServerError, Timeout
from m2f_client.transports.served_models import Hint, ServedModel, served_models


def step(name, takes, gives):
    return {
        "model_name": name,
        "input_map": {name: name for name in takes},
        "output_map": {name: name for name in gives},
    }


def ensemble(name, takes, *steps):
    inputs = [{"name": tensor, "data_type": "TYPE_STRING", "dims": ["1"]} for tensor in takes]
    outputs = [{"name": "num_instances", "data_type": "TYPE_INT32", "dims": ["1"]}]
    return {"name": name, "input": inputs, "output": outputs, "ensemble_scheduling": {"step": list(steps)}}


def export(name, dims, **engine):
    """The configurations of an export: both ensembles, and the engine; 64-bit numbers are text, as over gRPC."""
    first = step(f"{name}_first", ["image"], ["input", "img_shape", "ori_shape"])
    network = step(f"{name}_network", ["input"], ["cls_logits", "mask_logits"])
    last = step(f"{name}_last", ["cls_logits", "mask_logits", "img_shape", "ori_shape"], ["num_instances", "scores"])
    return {
        name: ensemble(name, ["image"], first, network, last),
        f"{name}_tensor": ensemble(f"{name}_tensor", ["input", "img_shape", "ori_shape"], network, last),
        f"{name}_network": {"name": f"{name}_network", "input": [{"name": "input", "dims": dims}], **engine},
    }


CONFIGS = {
    **export("parts", ["256", "320", "3"], platform="tensorrt_plan", backend="tensorrt"),
    **export("left", ["3", "-1", "-1"], backend="python", parameters={"execution_providers": {"string_value": "cuda"}}),
    "other": {"name": "other", "backend": "python"},  # a foreign model
}


class FakeConnection:
    """What a server says of its models.

    Args:
        configs: by name of the model; an error is raised.
        versions: loaded versions of a model, if not 1.
    """

    def __init__(self, configs, **versions):
        self.configs, self.versions, self.asked = configs, versions, []

    async def statistics(self, timeout):
        assert timeout is None or timeout > 0
        self.asked.append("statistics")
        if isinstance(self.configs, Exception):
            raise self.configs
        return [{"name": name, "version": number} for name in self.configs for number in self.versions.get(name, ["1"])]

    async def model_config(self, name, _timeout):
        self.asked.append(name)
        if isinstance(self.configs[name], Exception):
            raise self.configs[name]
        return self.configs[name]


def told(configs, error="no model 'x'", left=10.0):
    return str(asyncio.run(Hint(FakeConnection(configs)).added_to(ModelNotFound(error), left)))


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (CONFIGS, "no model 'x'; it has: left, parts"),
        ({"other": CONFIGS["other"]}, "no model 'x'; it has no model of m2f"),
        ({}, "no model 'x'; it has no model of m2f"),
        ({**CONFIGS, "left": ModelNotFound("unloaded meanwhile")}, "no model 'x'; it has: parts"),
        (InvalidRequest("the server wants a secret"), "no model 'x'"),  # it keeps them to itself
        ({**CONFIGS, "left": Timeout("late")}, "no model 'x'"),  # half a list would mislead
    ],
)
def test_the_hint_names_the_public_models(configs, message):
    assert told(configs) == message


def test_the_hint_is_asked_for_once():
    async def often():
        connection = FakeConnection(CONFIGS)
        hint = Hint(connection)
        return {str(await hint.added_to(ModelNotFound("no"), None)) for _ in range(3)}, connection.asked

    messages, asked = asyncio.run(often())
    assert messages == {"no; it has: left, parts"}
    assert asked.count("statistics") == 1


def test_what_the_models_are():
    connection = FakeConnection(CONFIGS, parts_network=["10", "9"])
    assert asyncio.run(served_models(connection, 5)) == [
        ServedModel("left", None, "python (cuda)", ("1",)),
        ServedModel("parts", (256, 320), "tensorrt_plan", ("9", "10")),
    ]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("parts_network", {"input": []}),
        ("parts_network", {"input": [{"dims": ["a", "b", "c"]}]}),
        ("parts_network", []),
    ],
)
def test_configurations_that_are_none(name, config):
    with pytest.raises(ServerError, match="cannot be read"):
        asyncio.run(served_models(FakeConnection({**CONFIGS, name: config}), 5))


# The real server


@KINDS
@SCHEMES
@pytest.mark.server
def test_a_model_that_is_not_there(server, kind, scheme):
    url = f"{scheme}://{server.grpc_url if scheme == 'grpc' else server.http_url}"
    calls = [lambda client: client.predict(b"x"), lambda client: client.class_names]
    for error in ask(kind, calls, url, model="parts"):
        assert type(error) is ModelNotFound
        assert f"'parts' is not found (server {url}); it has: mask2former" in str(error)


@SCHEMES
@pytest.mark.server
def test_the_command(server, scheme):
    url = f"{scheme}://{server.grpc_url if scheme == 'grpc' else server.http_url}"
    ran = CliRunner().invoke(main, ["models", "--url", url, "--json"])
    assert (ran.exit_code, ran.stderr) == (0, "")
    classes = ["circle", "square", "triangle", "star", "ring"]
    expected = {"name": "mask2former", "size": [256, 256], "engine": "python", "versions": ["1"], "classes": classes}
    assert json.loads(ran.stdout) == [expected]


@pytest.mark.server
def test_the_table(server):
    ran = CliRunner().invoke(main, ["models", "--url", server.grpc_url])
    head, _, row = ran.stdout.strip().splitlines()
    assert head.split() == ["model", "size", "engine", "version", "classes"]
    assert row.split(maxsplit=4) == ["mask2former", "256x256", "python", "1", "5: circle, square, triangle, ..."]


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("grpc://127.0.0.1:1", 1, "m2f: no gRPC server at grpc://127.0.0.1:1"),
        ("s3://x", 2, "Invalid value for --url: 's3://x' is not an address"),
    ],
)
def test_the_command_without_a_server(url, code, said):
    ran = CliRunner().invoke(main, ["models", "--url", url, "--timeout", "20"])
    assert ran.exit_code == code
    assert said in ran.stderr
