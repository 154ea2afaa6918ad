"""Both clients on a fake transport: what they send, and what they make of the answer."""

import asyncio
import inspect

import numpy as np
import pytest
from fake_triton import KINDS, ask, ask_once, names

from m2f.contract import STRUCTURED_OUTPUTS
from m2f_client import AsyncClient, Client, InvalidRequest, M2FError, ModelNotFound, ServerError, UnreadableImage
from m2f_client.fake import FakeTransport, result_of, stacked


def masks_of(count, height, width, seed=0):
    return np.random.default_rng(seed).random((count, height, width)) < 0.4


def answering(*results, class_names=None):
    transport = FakeTransport(lambda _: stacked(results), class_names=class_names)
    return Client(transport=transport), transport


def test_predict_sends_one_image_and_only_what_was_asked_for():
    client, transport = answering(result_of(masks_of(3, 5, 7)))
    result = client.predict(b"jpeg", score_threshold=np.float32(0.5), classes="0,2", keep_top_k=None)
    (request,) = transport.requests
    assert request.model == "mask2former"
    assert request.inputs["image"].tolist() == [[b"jpeg"]]
    assert request.outputs == STRUCTURED_OUTPUTS
    assert request.parameters == {"score_threshold": 0.5, "classes": "0,2"}
    assert len(result) == 3


def test_predict_reads_a_path(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\0")
    client, transport = answering(result_of(masks_of(1, 4, 4)))
    client.predict(path)
    client.predict(str(path))
    assert [r.inputs["image"][0, 0] for r in transport.requests] == [b"\x89PNG\0"] * 2


@pytest.mark.parametrize("name", ["missing.jpg", "."])
def test_unreadable_path_is_named_and_nothing_is_sent(tmp_path, name):
    client, transport = answering(result_of(masks_of(1, 4, 4)))
    with pytest.raises(UnreadableImage, match=str(tmp_path)):
        client.predict(tmp_path / name)
    assert not transport.requests


@pytest.mark.parametrize(
    ("outputs", "batched", "sent"),
    [
        (("scores",), False, ("scores",)),
        (("rle",), False, ("rle", "size")),  # a mask needs its size
        (("packed_masks",), False, ("packed_masks", "size")),  # the width is not a multiple of 8
        (("masks",), False, ("masks",)),
        (("scores",), True, ("scores", "num_instances")),  # padding must be cut
        (("masks",), True, ("masks", "num_instances", "size")),
        (("cls_logits",), True, ("cls_logits",)),  # no post-processing for raw outputs
        (("panoptic", "segments"), False, ("panoptic", "segments")),
        (("panoptic",), True, ("panoptic", "size")),
        (("semantic",), True, ("semantic", "size")),
        (("segments",), True, ("segments",)),
        (("scores", "scores"), False, ("scores",)),
    ],
)
def test_outputs_asked_of_the_server(outputs, batched, sent):
    client, transport = answering(*[Fakes.with_logits()] * (2 if batched else 1))
    client.predict_batch([b"x"] * (2 if batched else 1), outputs=outputs)
    assert transport.requests[0].outputs == sent


class Fakes:
    @staticmethod
    def with_logits():
        result = result_of(masks_of(2, 4, 6))
        result.outputs["cls_logits"] = np.zeros((4, 3), np.float32)
        result.outputs["panoptic"] = result.outputs["semantic"] = np.ones((4, 6), np.int32)
        result.outputs["segments"] = np.array([b"[]"], object)
        return result


def test_batch_of_different_sizes_loses_its_padding():
    singles = [result_of(masks_of(k, h, w, seed=k)) for k, h, w in [(3, 5, 9), (0, 8, 2), (1, 1, 1)]]
    client, _ = answering(*singles)
    for got, expected in zip(client.predict_batch([b"a", b"b", b"c"]), singles, strict=True):
        for name in STRUCTURED_OUTPUTS:
            assert got.outputs[name].dtype == expected.outputs[name].dtype
            assert got.outputs[name].tolist() == expected.outputs[name].tolist(), name
        assert np.array_equal(got.masks, expected.outputs["masks"])


def test_dense_masks_of_a_batch_are_cropped():
    singles = [result_of(masks_of(k, h, w)) for k, h, w in [(2, 5, 9), (1, 7, 3)]]
    client, _ = answering(*singles)
    shapes = [result.masks.shape for result in client.predict_batch([b"a", b"b"], outputs=("masks",))]
    assert shapes == [(2, 5, 9), (1, 7, 3)]


@pytest.mark.parametrize("count", [0, 9])
def test_batch_size_is_1_to_8(count):
    client, _ = answering(result_of(masks_of(1, 4, 4)))
    with pytest.raises(InvalidRequest, match=f"1 to 8 images; got {count}"):
        client.predict_batch([b"x"] * count)


@pytest.mark.parametrize(
    ("value", "message"),
    [([1], "must be str, int, float or bool; got list"), (2**63, "64 bits"), (1j, "got complex")],
)
def test_parameters_that_no_protocol_carries(value, message):
    client, transport = answering(result_of(masks_of(1, 4, 4)))
    with pytest.raises(InvalidRequest, match=message):
        client.predict(b"x", keep_top_k=value)
    assert not transport.requests


def test_no_outputs():
    client, _ = answering(result_of(masks_of(1, 4, 4)))
    with pytest.raises(InvalidRequest, match="no outputs"):
        client.predict(b"x", outputs=())


@KINDS
@pytest.mark.parametrize(
    ("stated", "names"),
    [
        pytest.param(["cat", "Bär"], ("cat", "Bär"), id="names"),
        pytest.param([], None, id="an empty list"),
        pytest.param(None, None, id="no such output"),
    ],
)
def test_class_names_are_read_once(kind, stated, names):
    fake = FakeTransport(lambda _: {}, class_names=stated)

    def twice(client):
        return client.class_names, client.class_names

    async def twice_awaited(client):
        return await client.class_names, await client.class_names

    assert ask_once(kind, twice if kind is Client else twice_awaited, transport=fake) == (names, names)
    assert (fake.class_name_calls, fake.requests) == (1, [])


def test_the_model_is_the_one_that_was_named():
    transport = FakeTransport(lambda _: stacked([result_of(masks_of(1, 4, 4))]))
    client = Client(transport=transport, model="parts")
    client.predict(b"x")
    assert (client.model, transport.requests[0].model) == ("parts", "parts")


class Refusing(FakeTransport):
    """Refuses every request."""

    async def infer(self, request):
        raise {"parts": ModelNotFound, "mask2former": InvalidRequest}[request.model]("no")


@KINDS
@pytest.mark.parametrize(("model", "error"), [("parts", ModelNotFound), ("mask2former", InvalidRequest)])
def test_class_names_of_a_model_that_does_not_answer(kind, model, error):
    """None would hide that the model is not there, or that the server wants something first."""
    with pytest.raises(error, match="no"):
        ask_once(kind, names, transport=Refusing(lambda _: {}), model=model)


def test_a_model_without_a_name():
    client = Client(transport=FakeTransport(lambda _: {}), model="")
    with pytest.raises(InvalidRequest, match="name is empty; m2f models"):
        client.predict(b"x")


def test_the_transports_error_arrives_and_the_client_closes():
    def fail(_):
        raise ServerError("out of memory")

    transport = FakeTransport(fail)
    with Client(transport=transport) as client, pytest.raises(M2FError, match="out of memory"):
        client.predict(b"x")
    assert transport.closed


@pytest.mark.parametrize("url", ["", "ftp://host", "grpc://", "grpc://host:port", "http://h:99999"])
def test_bad_addresses(url):
    with pytest.raises(M2FError, match="not an address"):
        Client(url)


@KINDS
@pytest.mark.parametrize("url", ["grpc://host", "http://host", "http://host:80/base", "grpc://[::1]:8001"])
def test_good_addresses_open_without_a_server(kind, url):
    assert kind(url).url == url
    assert ask(kind, [], url) == []  # closes without having been used


def test_both_clients_have_the_same_members_with_the_same_arguments():
    for name in [name for name in vars(Client) if not name.startswith("_")]:
        mine, other = (inspect.getattr_static(kind, name) for kind in (AsyncClient, Client))
        if inspect.isfunction(other):
            arguments = [
                [(p.name, p.default, p.kind) for p in inspect.signature(f).parameters.values()] for f in (mine, other)
            ]
            assert arguments[0] == arguments[1], name
    assert inspect.signature(AsyncClient) == inspect.signature(Client)


def test_both_clients_send_the_same_request():
    call = {"outputs": ("rle", "scores"), "timeout": 3, "score_threshold": np.float32(0.5), "classes": None}
    sent, got = [], []
    for kind in (Client, AsyncClient):
        transport = FakeTransport(lambda _: stacked([result_of(masks_of(1, 4, 4))] * 2))
        got.append(ask_once(kind, lambda client: client.predict_batch([b"a", b"b"], **call), transport=transport))
        assert transport.closed
        (request,) = transport.requests
        sent.append((request.model, request.outputs, request.parameters, request.timeout))
        assert request.inputs["image"].tolist() == [[b"a"], [b"b"]]
    assert sent[0] == sent[1]
    first, second = ([result.outputs["rle"].tolist() for result in results] for results in got)
    assert first == second


def test_a_client_refuses_a_transport_that_needs_an_event_loop():
    class Waits(FakeTransport):
        async def infer(self, request):
            await asyncio.sleep(0)
            return await super().infer(request)

    with pytest.raises(RuntimeError, match="needs an event loop"):
        Client(transport=Waits(lambda _: {})).predict(b"x")
