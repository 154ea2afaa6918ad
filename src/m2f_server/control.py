"""Calls to a running server over its HTTP port, with its secret."""

import base64
import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from m2f_backend.calls import TIMEOUT_S, CallError, fetch, queues
from m2f_server.access import Access

_RESTRICTED = "/v2/repository/"
_LOAD_TIMEOUT_S = 300.0  # a large engine


class Control:
    """One server, as those see it who look after it.

    Every method raises `CallError` where the server does not answer in time or refuses.

    Args:
        http_url: `host:port` of its HTTP port.
        metrics_url: `host:port` of its metrics.
        access: its secret.
    """

    def __init__(self, *, http_url: str, metrics_url: str, access: Access) -> None:
        self._http_url = http_url
        self._metrics_url = metrics_url
        self._access = access

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> bytes:
        """Return the body of a 200 answer; `timeout` seconds bound each wait for the server.

        The secret goes only where it is needed: somebody else may listen on the port before the server does.
        """
        if path.startswith(_RESTRICTED):
            headers = {**self._access.headers, **(headers or {})}
        return fetch(self._http_url, method, path, body=body, headers=headers, timeout=timeout)

    def metrics(self) -> str:
        """Return the Prometheus metrics."""
        return fetch(self._metrics_url, "GET", "/metrics").decode()

    def index(self) -> list[dict[str, str]]:
        """Return `name`, `version`, `state` and `reason` of every model, as Triton has them."""
        return self._json("POST", "/v2/repository/index")

    def loaded(self) -> set[tuple[str, str]]:
        """Return name and version of every model that Triton takes for ready."""
        return {(entry["name"], entry.get("version", "")) for entry in self.index() if entry.get("state") == "READY"}

    def config(self, model: str) -> dict[str, Any]:
        """Return a model's configuration."""
        return self._json("GET", f"/v2/models/{quote(model)}/config")

    def is_ready(self, model: str) -> bool:
        """Tell whether a model says that it is ready; Triton from 26.01 on notices a dead stub here."""
        try:
            self.call("GET", f"/v2/models/{quote(model)}/ready")
        except CallError as error:
            if error.status is None:
                raise
            return False
        return True

    def answered(self) -> dict[str, int]:
        """Return how many requests each model has answered so far, well or not."""
        counts: dict[str, int] = {}
        for entry in self._json("GET", "/v2/models/stats")["model_stats"]:
            totals = entry["inference_stats"]
            done = int(totals["success"].get("count", 0)) + int(totals["fail"].get("count", 0))
            counts[entry["name"]] = counts.get(entry["name"], 0) + done
        return counts

    def pending(self) -> Mapping[str, int]:
        """Return how many requests wait for each model, those that it is at work on not counted."""
        return queues(self._metrics_url).pending

    def reload(self, model: str) -> None:
        """Load a model anew beside the old one, which is then let go: nobody finds it missing meanwhile.

        Triton 2.51 leaves a model alone whose files and configuration have not changed, whether its stub lives or
        not. So one entry is new each time, in a field that names engine files by GPU and means nothing to a Python
        model. To unload and load instead would take every ensemble away that has this model as a step.
        """
        config = self.config(model)
        config.setdefault("cc_model_filenames", {})["m2f-reload"] = secrets.token_hex(4)
        self.load(model, config)

    def load(
        self, model: str, config: Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Load a model, beside the one that serves under this name, which then ends.

        Args:
            model: its name.
            config: in place of the one in the repository.
            files: in place of the folder in the repository, contents by `<version>/<name>`.
        """
        parameters = {f"file:{path}": base64.b64encode(content).decode() for path, content in (files or {}).items()}
        if config is not None:
            parameters["config"] = json.dumps(config)
        body = json.dumps({"parameters": parameters}).encode()
        self.call("POST", f"/v2/repository/models/{quote(model)}/load", body, timeout=_LOAD_TIMEOUT_S)

    def unload(self, model: str, *, timeout: float = TIMEOUT_S) -> None:
        """Take no new requests for a model; those in flight go on, and `index` says UNLOADING until they are done.

        Triton does this after what it is loading at the time, so allow for that in `timeout` (seconds).
        """
        self.call("POST", f"/v2/repository/models/{quote(model)}/unload", b"{}", timeout=timeout)

    def _json(self, method: str, path: str) -> Any:
        content = self.call(method, path)
        try:
            return json.loads(content)
        except ValueError as error:
            raise CallError(f"{method} {path}: not JSON: {error}") from error
