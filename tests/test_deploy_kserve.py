"""deploy/kserve: what KServe's own tables say of it, and our client at the addresses that KServe gives a service."""

import asyncio
from pathlib import Path

import pytest
import yaml
from chart import containers, rendered
from ingress import ingress
from manifests import check

from m2f_cli.serve import serve
from m2f_client import AsyncClient, Client, M2FError

ROOT = Path(__file__).parents[1]
RUNTIME, SERVICE = (
    yaml.safe_load((ROOT / f"deploy/kserve/{name}.yaml").read_text()) for name in ("servingruntime", "inferenceservice")
)
(CONTAINER,) = RUNTIME["spec"]["containers"]
HOST, PATH = "m2f-default.example.com", "/serving/default/m2f"


@pytest.mark.parametrize("manifest", [RUNTIME, SERVICE], ids=lambda manifest: manifest["kind"])
def test_kserve_takes_the_manifest(manifest):
    check(manifest)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("spec", "predictor", "model", "runtimes"), "runtimes is no field of V1beta1ModelSpec"),
        (("spec", "predictor", "model", "modelFormat", "nmae"), "nmae is no field of V1beta1ModelFormat"),
        (("spec", "predictor", "securityContext", "runAsRoot"), "runAsRoot"),
    ],
)
def test_an_unknown_field_is_found(path, message):
    with pytest.raises(Exception, match=message):
        check(extended(SERVICE, *path))


def extended(manifest, name, *path):
    """The manifest with one more field."""
    return manifest | {name: extended(manifest[name], *path) if path else "more"}


def test_the_service_asks_for_what_the_runtime_offers():
    model = SERVICE["spec"]["predictor"]["model"]
    offered = [{key: known[key] for key in ("name", "version")} for known in RUNTIME["spec"]["supportedModelFormats"]]
    assert model["modelFormat"] in offered
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]


def test_m2f_serve_knows_the_options_and_listens_on_the_ports():
    options = serve.make_context("m2f serve", list(CONTAINER["args"])).params
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {name: options[f"{name}_port"] for name in ports}
    assert next(iter(ports)) == "grpc"  # KServe's Service forwards to the first
    assert RUNTIME["spec"]["annotations"]["prometheus.kserve.io/port"] == str(ports["metrics"])
    grace = SERVICE["spec"]["predictor"]["terminationGracePeriodSeconds"]
    assert grace > options["drain_delay"] + options["drain_timeout"] + 10


def test_the_container_is_that_of_the_chart():
    """But for what KServe decides: ports, mounts of the models, and the front."""
    _, named = containers(rendered("default"))
    ports = {"health": 8003}
    for key in ("image", "securityContext", "resources", "startupProbe", "readinessProbe", "livenessProbe"):
        ours, charts = CONTAINER[key], named["m2f"][key]
        if key.endswith("Probe"):
            charts = charts | {"httpGet": charts["httpGet"] | {"port": ports[charts["httpGet"]["port"]]}}
        if key == "resources":
            charts = {kind: {name: str(value) for name, value in found.items()} for kind, found in charts.items()}
        assert ours == charts
    pod, _ = containers(rendered("default"))
    assert SERVICE["spec"]["predictor"]["securityContext"] == pod["securityContext"]
    assert RUNTIME["spec"]["volumes"] == [found for found in pod["volumes"] if found["name"] in ("shm", "tmp")]


@pytest.fixture(scope="module")
def address(server, tmp_path_factory):
    """The ingress, which knows the service by host name, and by path over HTTP."""
    with ingress(tmp_path_factory.mktemp("ingress"), server, host=HOST, path=PATH) as found:
        yield found


@pytest.mark.server
@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("http://{}", {"host": HOST}),  # as curl -H Host:
        ("http://{}" + PATH, {}),  # where KServe has a pathTemplate
        ("grpc://{}", {"Host": HOST}),  # as grpcurl -authority
    ],
)
def test_the_client_reaches_the_service(address, image_files, url, headers):
    async def predict():
        async with AsyncClient(url.format(address), headers=headers) as client:
            return await client.predict(image_files[0])

    with Client(url.format(address), headers=headers) as client:
        assert len(client.predict(image_files[0]).scores)
    assert len(asyncio.run(predict()).scores)


@pytest.mark.server
@pytest.mark.parametrize("url", ["http://{}", "grpc://{}", "http://{}/serving/default/other"])
def test_the_ingress_knows_nothing_else(address, image_files, url):
    with Client(url.format(address)) as client, pytest.raises(M2FError):
        client.predict(image_files[0])
