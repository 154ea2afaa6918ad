"""Proxies of the environment: which way a request takes, over both protocols, and what is said when nobody answers."""

import base64
import socket
import ssl

import numpy as np
import pytest
from certificates import openssl
from click.testing import CliRunner
from fake_server import serving
from fake_triton import KINDS, SCHEMES, ask, ask_once, fake_triton, fakes, names, predict
from http_proxy import NO_PROXIES, PROXY_VARIABLES, http_proxy, no_proxies

from m2f_cli.main import main
from m2f_client import InvalidAddress, ServerError, ServerUnavailable, Timeout, Tls
from m2f_client.fake import result_of, stacked
from m2f_client.transports.address import is_this_machine
from m2f_client.transports.proxies import proxy_for

NOWHERE = "http://user:secret@127.0.0.1:1"
THIS_MACHINE = (
    "127.0.0.1",
    "127.0.0.2",
    "localhost",
    "LocalHost.",
    "a.localhost",
    "::1",
    "0.0.0.0",
    "::ffff:127.0.0.1",
)
EVERY_VARIABLE = {spelt: NOWHERE for name in PROXY_VARIABLES[:4] for spelt in (name, name.upper())}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    no_proxies(monkeypatch)
    return monkeypatch.setenv


@pytest.mark.parametrize("host", THIS_MACHINE)
def test_this_machine_is_never_reached_through_a_proxy(environment, host):
    assert is_this_machine(host)
    for name, value in EVERY_VARIABLE.items():
        environment(name, value)
    target = f"[{host}]:8001" if ":" in host else f"{host}:8001"
    assert [proxy_for(scheme, target) for scheme in ("grpc", "grpcs", "http", "https")] == [None] * 4


@pytest.mark.parametrize("host", ["10.0.0.1", "localhost.example", "notlocalhost", "::2", "128.0.0.1"])
def test_other_machines(host):
    assert not is_this_machine(host)


WAYS = {
    "grpc": ["grpc_proxy", "https_proxy", "http_proxy"],
    "grpcs": ["grpc_proxy", "https_proxy", "http_proxy"],
    "http": ["http_proxy", "all_proxy"],
    "https": ["https_proxy", "all_proxy"],
}


@pytest.mark.parametrize("scheme", WAYS)
def test_the_first_variable_that_is_set(environment, monkeypatch, scheme):
    order = [spelt for name in WAYS[scheme] for spelt in (name, name.upper())]
    for name in EVERY_VARIABLE:
        environment(name, f"http://{name}:3128")
    found = []
    while (proxy := proxy_for(scheme, "host.example:8001")) is not None:
        found.append(proxy.variable)
        assert proxy.address == f"{proxy.variable}:3128"
        monkeypatch.delenv(proxy.variable)
    assert found == order


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_value_means_no_proxy(environment, empty):
    environment("grpc_proxy", empty)
    environment("http_proxy", NOWHERE)
    assert proxy_for("grpc", "host.example") is None
    assert proxy_for("http", "host.example") is not None


def test_a_cgi_program_does_not_believe_a_header(environment):
    """The header `Proxy` of a request is HTTP_PROXY there."""
    environment("REQUEST_METHOD", "GET")
    environment("HTTP_PROXY", NOWHERE)
    assert proxy_for("http", "host.example") is None
    environment("http_proxy", NOWHERE)
    assert proxy_for("http", "host.example") is not None


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(
    ("entries", "excepted", "not_excepted"),
    [
        ("*", ["host.example:1", "10.0.0.1:1"], []),
        ("host.example", ["host.example:1", "a.host.example:1", "HOST.example."], ["ahost.example:1", "example:1"]),
        (" a.b , .c.d ,*.e", ["a.b:1", "c.d:1", "x.c.d:1", "x.e:1"], ["b:1", "d:1"]),
        ("host.example:8001", ["host.example:8001"], ["host.example:8000"]),
        ("10.0.0.0/8,192.0.2.7", ["10.9.8.7:1", "192.0.2.7:1"], ["11.0.0.1:1", "192.0.2.77:1", "[::2]:1"]),
        ("fd00::/8,[fe80::1]", ["[fd12::1]:1", "[fe80::1]:1", "[fe80::1%eth0]:1"], ["[fe80::2]:1", "10.0.0.1:1"]),
        ("", [], ["host.example:1"]),
        (",,", [], ["host.example:1"]),
    ],
)
def test_hosts_that_need_no_proxy(environment, name, entries, excepted, not_excepted):
    environment("http_proxy", NOWHERE)
    environment(name, entries)
    for scheme in ("http", "grpc"):
        assert [host for host in excepted if proxy_for(scheme, host)] == []
        assert [host for host in not_excepted if not proxy_for(scheme, host)] == []


def test_grpc_has_exceptions_of_its_own(environment):
    environment("http_proxy", NOWHERE)
    environment("no_proxy", "other.example")
    environment("no_grpc_proxy", "host.example")
    assert proxy_for("grpc", "host.example") is None
    assert proxy_for("grpc", "other.example") is not None
    assert proxy_for("http", "other.example") is None


@pytest.mark.parametrize(
    ("value", "address", "login"),
    [
        ("proxy.example:3128", "proxy.example:3128", None),
        ("http://proxy.example/", "proxy.example:80", None),
        ("HTTP://u:p%40ss@[::1]:3128", "[::1]:3128", ("u", "p@ss")),
    ],
)
def test_the_value_of_a_variable(environment, value, address, login):
    environment("http_proxy", value)
    proxy = proxy_for("http", "host.example")
    assert (proxy.address, proxy.login) == (address, login)


@pytest.mark.parametrize("value", ["socks5://u:secret@h:1", "https://h:1", "http://", "::::", "a b", "h:99999", "h:x"])
@SCHEMES
def test_a_proxy_that_cannot_be_used_is_named(environment, scheme, value):
    environment("http_proxy", value)
    with pytest.raises(InvalidAddress, match=r"the proxy in http_proxy .* allowed is http://HOST:PORT") as caught:
        proxy_for(scheme, "host.example:1")
    assert "secret" not in str(caught.value)
    assert "no_proxy=host.example" in str(caught.value)
    assert proxy_for(scheme, "127.0.0.1:1") is None


@KINDS
@SCHEMES
@pytest.mark.parametrize("variables", [EVERY_VARIABLE, {"http_proxy": "socks5://nobody"}], ids=["all", "unusable"])
def test_servers_of_this_machine_answer(environment, kind, scheme, variables):
    for name, value in variables.items():
        environment(name, value)
    for count in (1, 2):
        with fakes(scheme, *["ok"] * count) as (url, _):
            assert ask_once(kind, names, url) == ("cat",)


@KINDS
@pytest.mark.parametrize(
    ("scheme", "first"),
    [("grpc", "CONNECT server.example:8001 HTTP/1."), ("http", "POST http://server.example:8000/v2/")],
)
def test_another_machine_is_reached_through_the_proxy(environment, kind, scheme, first):
    with fake_triton(scheme) as server, http_proxy(server.address) as proxy:
        environment("http_proxy", f"http://user:p%40ss@{proxy.address}")
        result, classes = ask(kind, [predict, names], f"{scheme}://server.example")
        assert (len(result), classes) == (1, ("cat",))
    assert proxy.asked[0].startswith(first)
    login = base64.b64encode(b"user:p@ss").decode()
    assert f"proxy-authorization: basic {login}".lower() in proxy.asked[0].lower()


@pytest.fixture(scope="module")
def example_tls(tmp_path_factory):
    """The certificate of server.example: the file, and the server's context."""
    folder = tmp_path_factory.mktemp("example")
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=server.example", "-addext", "subjectAltName=DNS:server.example",
        "-keyout", folder / "key", "-out", folder / "cert",
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    return folder / "cert", context


@KINDS
@pytest.mark.parametrize(("scheme", "inner"), [("grpcs", "grpc"), ("https", "http")])
def test_tls_goes_through_a_tunnel(environment, kind, scheme, inner, example_tls):
    certificate, context = example_tls
    context.set_alpn_protocols(["h2"] if inner == "grpc" else ["http/1.1"])
    with fake_triton(inner) as server, http_proxy(server.address, tls=context) as proxy:
        environment("HTTPS_PROXY", proxy.address)
        options = {"tls": Tls(ca=certificate)}
        assert len(ask_once(kind, predict, f"{scheme}://server.example", **options)) == 1
        assert proxy.asked[0].startswith("CONNECT server.example:443 ")


@KINDS
@SCHEMES
def test_several_servers_behind_a_proxy(environment, kind, scheme):
    """One of them is on this machine, and has no proxy; the first is away."""
    with fake_triton(scheme) as server, http_proxy("127.0.0.1:1") as proxy:
        environment("http_proxy", proxy.address)
        assert ask_once(kind, names, f"{scheme}://server.example,{server.address}") == ("cat",)
        assert "server.example:" in proxy.asked[0]


@KINDS
@pytest.mark.parametrize("scheme", ["grpc", "grpcs", "http", "https"])
def test_nobody_answers_at_the_proxy(environment, kind, scheme):
    environment("http_proxy", NOWHERE)
    environment("https_proxy", NOWHERE)
    name = "http_proxy" if scheme == "http" else "https_proxy"
    message = rf"at {scheme}://192\.0\.2\.1 \(Connection refused, by the proxy in {name}; no_proxy=192\.0\.2\.1 goes"
    with pytest.raises(ServerUnavailable, match=message) as caught:
        ask_once(kind, names, f"{scheme}://192.0.2.1", timeout=30)
    assert "secret" not in str(caught.value)


@KINDS
@pytest.mark.parametrize(
    ("scheme", "error"), [("grpc", ServerUnavailable), ("https", ServerUnavailable), ("http", ServerError)]
)
def test_the_proxy_refuses(environment, kind, scheme, error):
    with http_proxy("127.0.0.1:1", refusal="403 Forbidden") as proxy:
        environment("https_proxy", proxy.address)
        environment("http_proxy", proxy.address)
        with pytest.raises(error, match=r"403.*by the proxy in https?_proxy; no_proxy=server\.example goes"):
            ask_once(kind, names, f"{scheme}://server.example", timeout=30)


@KINDS
@SCHEMES
def test_a_timeout_names_the_proxy(environment, kind, scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment("http_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Timeout, match=r"within 0\.3 s, by the proxy in http_proxy; no_proxy=server\.example goes"):
            ask_once(kind, names, f"{scheme}://server.example", timeout=0.3)


# Commands


@pytest.mark.parametrize("variables", [[name] for name in EVERY_VARIABLE] + [list(EVERY_VARIABLE)], ids=str)
def test_predict_on_this_machine(tmp_path, variables):
    (tmp_path / "a.png").write_bytes(b"x")
    with serving(lambda _: stacked([result_of(np.ones((1, 1, 1)))])) as fake:
        environment = {**NO_PROXIES, **dict.fromkeys(variables, NOWHERE)}
        ran = CliRunner().invoke(main, ["predict", "--url", fake.url, str(tmp_path / "a.png")], env=environment)
    assert (ran.exit_code, ran.stderr) == (0, "")


@SCHEMES
@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_predict_on_another_machine(tmp_path, scheme, name):
    (tmp_path / "a.png").write_bytes(b"x")
    command = ["predict", "--url", f"{scheme}://192.0.2.1", "--timeout", "30", str(tmp_path / "a.png")]
    ran = CliRunner().invoke(main, command, env={**NO_PROXIES, name: NOWHERE})
    assert ran.exit_code == 1
    assert ran.stderr.count("\n") == 1
    assert f"by the proxy in {name}; no_proxy=192.0.2.1 goes without it" in ran.stderr


def test_predict_with_a_proxy_that_cannot_be_used(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    command = ["predict", "--url", "grpc://192.0.2.1", str(tmp_path / "a.png")]
    ran = CliRunner().invoke(main, command, env={**NO_PROXIES, "https_proxy": "socks5h://127.0.0.1:1"})
    assert ran.exit_code == 2
    assert "the proxy in https_proxy" in ran.stderr
