"""Certificates for tests, by openssl. From Python 3.13 on, ssl insists on an authority's keyUsage."""

import subprocess


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_certificates(folder):
    """Fill a folder with an authority, and a server's and a client's certificate of it; `other` is unknown to it."""
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ca", "other"):
        files = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")
        openssl(*new, "-subj", f"/CN={name}", "-addext", "keyUsage=critical,digitalSignature,keyCertSign", *files)
    for name in ("server", "client"):
        signed = (
            "-CA",
            folder / "ca.pem",
            "-CAkey",
            folder / "ca.key",
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:m2f.test",
        )
        signed += ("-addext", "basicConstraints=critical,CA:FALSE")
        files = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")
        openssl(*new, "-subj", f"/CN={name}", *signed, *files)
