"""Images from http(s) addresses."""

from __future__ import annotations

import base64
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import quote, urlsplit, urlunsplit

from m2f_client.client_errors import InvalidAddress, UnreadableImage
from m2f_client.files import MAX_BYTES
from m2f_client.predict.video import VIDEO_SUFFIXES
from m2f_client.transports.proxies import Proxy, proxy_for
from m2f_client.transports.waiting import in_thread

_CHUNK = 1 << 20
_UNRESERVED = "/%:@!$&'()*+,;=~?"


def is_url(name: str) -> bool:
    """Say whether a name is an http(s) address."""
    return name.lower().startswith(("http://", "https://"))


def download(url: str, *, timeout: float, max_bytes: int = MAX_BYTES) -> bytes:
    """Return what is at an http(s) address. Redirects are followed.

    Args:
        url: the address.
        timeout: seconds that the download may take.
        max_bytes: largest download.

    Raises:
        UnreadableImage: the address cannot be downloaded.
    """
    way = _Way()
    try:  # in a thread, for urllib's timeout bounds each read, and a server may send its headers byte by byte
        return in_thread(_download, timeout, _checked(url), way, timeout, max_bytes)
    except TimeoutError as error:
        raise UnreadableImage(f"not downloaded within {timeout:g} s{way.note}") from error
    except urllib.error.HTTPError as error:
        raise UnreadableImage(f"HTTP {error.code} {error.reason}{way.note}") from error
    except urllib.error.URLError as error:
        raise UnreadableImage(f"cannot be downloaded: {error.reason}{way.note}") from error
    except InvalidAddress as error:
        raise UnreadableImage(str(error)) from error
    except (OSError, HTTPException, ValueError) as error:  # urllib raises ValueError for a malformed URL
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImage(f"{reason}{way.note}") from error


def _checked(url: str) -> str:
    """Return an address in ASCII: names of other alphabets and spaces are encoded, as browsers do."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("an address has no user and password here")
    if parts.path.lower().endswith(VIDEO_SUFFIXES):
        raise ValueError("a video is read from a file; download it first")
    path, query = (quote(text, safe=_UNRESERVED) for text in (parts.path, parts.query))
    return urlunsplit((parts.scheme, parts.netloc.encode("idna").decode(), path, query, ""))


def _download(url: str, way: _Way, timeout: float, max_bytes: int) -> bytes:
    deadline = time.monotonic() + timeout
    request = urllib.request.Request(url, headers={"User-Agent": "m2f"})  # some sites refuse Python's own name
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), way)
    data = bytearray()
    with opener.open(request, timeout=timeout) as answer:
        while chunk := answer.read1(_CHUNK):
            data += chunk
            if len(data) > max_bytes:
                raise UnreadableImage(f"larger than {max_bytes >> 20} MiB")
            if time.monotonic() > deadline:
                raise TimeoutError
        if answer.length:  # bytes announced but not sent
            raise UnreadableImage("the download is incomplete")
    return bytes(data)


class _Way(urllib.request.BaseHandler):
    """Sends each request of a download through its proxy, redirects too: `urllib` spares this machine none.

    Attributes:
        note: names the proxy of the last request, for messages; empty without a proxy.
    """

    handler_order = 100  # before the handlers that open connections, as urllib's ProxyHandler
    note = ""

    def http_open(self, request: urllib.request.Request) -> None:
        """Lead a request to its proxy. The next handler opens the connection."""
        proxy: Proxy | None = proxy_for(request.type, request.host)
        self.note = f", {proxy.note}" if proxy is not None else ""
        if proxy is None:
            return
        if proxy.login is not None:
            login = base64.b64encode(":".join(proxy.login).encode()).decode()
            request.add_unredirected_header("Proxy-authorization", f"Basic {login}")
        request.set_proxy(proxy.address, "http")

    https_open = http_open
