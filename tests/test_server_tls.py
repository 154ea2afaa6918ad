"""TLS and mTLS of the real server's gRPC port."""

import subprocess

import pytest
import tritonclient.grpc
from certificates import openssl
from throwaway import FREE_PORT_OPTIONS, FREE_PORTS, command, listening, write_model
from tritonclient.utils import InferenceServerException

from m2f_server import ServerTls, TlsError, serve

pytestmark = pytest.mark.server
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


def alive(server, folder, *, ca="ca", own=None, tls=True):
    """Ask the server over gRPC whether it lives."""
    files = {"root_certificates": folder / f"{ca}.pem"}
    if own:
        files |= {"private_key": folder / f"{own}.key", "certificate_chain": folder / f"{own}.pem"}
    options = {name: str(path) for name, path in files.items()} | {"ssl": True} if tls else {}
    with tritonclient.grpc.InferenceServerClient(server.grpc_url, **options) as client:
        return client.is_server_live(client_timeout=5)


@pytest.fixture(params=[False, True], ids=["tls", "mtls"])
def mutual(request):
    return request.param


@pytest.fixture
def tls_server(mutual, certificates, tmp_path):
    client_ca = certificates / "ca.pem" if mutual else None
    tls = ServerTls(cert=certificates / "server.pem", key=certificates / "server.key", client_ca=client_ca)
    repository = write_model(tmp_path / "models")
    with serve(model_repository=repository, host="0.0.0.0", tls=tls, **FREE_PORTS) as running:
        yield running


def test_who_is_let_in(tls_server, mutual, certificates):
    assert alive(tls_server, certificates, own="client")
    refused = [{"tls": False}, {"ca": "other", "own": "client"}]
    if mutual:
        refused += [{"own": None}, {"own": "other"}]
    else:
        assert alive(tls_server, certificates)
    for options in refused:
        with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            alive(tls_server, certificates, **options)


@pytest.mark.parametrize("mutual", [False], indirect=True)
def test_only_grpc_leaves_the_machine(tls_server):
    """HTTP has no TLS, metrics are asked for on an address of their own."""
    assert set(listening(tls_server.ports["grpc"])) - LOOPBACK
    for protocol in ("http", "metrics"):
        assert set(listening(tls_server.ports[protocol])) <= LOOPBACK
    arguments = (f"127.0.0.1:{tls_server.ports['grpc']}", "-alpn", "h2", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    old = subprocess.run(
        ["openssl", "s_client", "-connect", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert old.returncode != 0


def test_the_command(certificates, tmp_path):
    write_model(tmp_path / "models")
    files = [f"--tls-cert={certificates / 'server.pem'}", f"--tls-key={certificates / 'server.key'}"]
    process = command("--model-repository", str(tmp_path / "models"), *FREE_PORT_OPTIONS, *files)
    try:
        assert "  grpcs://127.0.0.1:" in process.stdout.readline()
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.parametrize("given", [["--tls-cert=x"], ["--tls-key=x"], ["--tls-client-ca=x"]])
def test_certificate_and_key_go_together(given):
    process = command(*given)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "--tls-cert and --tls-key go together" in error


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cert": "missing.pem"}, "missing.pem and .*server.key are not a certificate and its key: .*No such file"),
        ({"key": "client.key"}, "are not a certificate and its key: .*mismatch"),
        ({"key": "server.pem"}, "are not a certificate and its key"),
        ({"key": "locked.key"}, "passphrase"),
        ({"client_ca": "server.key"}, "server.key holds no certificates"),
        ({"client_ca": "missing.pem"}, "missing.pem holds no certificates"),
    ],
)
def test_files_are_checked_before_the_server_starts(certificates, files, message):
    plain, locked = certificates / "server.key", certificates / "locked.key"
    openssl("ec", "-in", plain, "-aes128", "-passout", "pass:x", "-out", locked)
    names = {"cert": "server.pem", "key": "server.key"} | files
    with pytest.raises(TlsError, match=message):
        ServerTls(**{name: certificates / file for name, file in names.items()})
