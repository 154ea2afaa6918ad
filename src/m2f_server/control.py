"""Calls to a running server over its HTTP port, with the secret of the restricted interfaces."""

import base64
import http.client
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy.typing as npt

from m2f_backend.calls import TIMEOUT_S, CallError, fetch, queues
from m2f_server.access import Access
from m2f_server.tensors import Arrays, decode, encode
from m2f_server.triton_2_51 import with_a_change

_RESTRICTED = "/v2/repository/"
_LOAD_TIMEOUT_S = 300.0  # for a large engine
_AT_WORK = ("compute_input", "compute_infer", "compute_output")
_ENGINE = re.compile(r"^m2f_engine_info\{(.*)\} 1", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Control:
    """Administers one server. Every method raises `CallError` if the server refuses or does not answer in time.

    Args:
        http_url: `host:port` of the server's HTTP port.
        metrics_url: `host:port` of the server's metrics.
        access: the server's secret.
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
        """Return the body of an answer with status 200.

        The arguments are those of `m2f_backend.calls.fetch`. Only calls to a restricted interface carry the secret,
        because another program may have the port before the server starts.
        """
        if path.startswith(_RESTRICTED):
            headers = {**self._access.headers, **(headers or {})}
        return fetch(self._http_url, method, path, body=body, headers=headers, timeout=timeout)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        outputs: Sequence[str],
        *,
        parameters: Mapping[str, Any] | None = None,
        request_id: str = "",
        timeout: float,
    ) -> Arrays:
        """Return the output tensors of a model by name.

        Args:
            model: name of the model.
            inputs: input tensors by name.
            outputs: names of the requested outputs.
            parameters: request parameters.
            request_id: id of the request in the server's log.
            timeout: largest number of seconds for each wait for the server.
        """
        body, headers = encode(inputs, outputs, parameters=parameters or {}, request_id=request_id)
        path = f"/v2/models/{quote(model)}/infer"
        content = self.call("POST", path, body, headers=headers, timeout=timeout)
        try:
            return decode(content)
        except ValueError as error:
            raise CallError(f"POST {path}: the answer cannot be read: {error}", status=http.client.OK) from error

    def name(self) -> str:
        """Return the server's name: its `--id`, which `m2f serve` chooses."""
        return str(self._json("GET", "/v2").get("name", ""))

    def metrics(self) -> str:
        """Return the Prometheus metrics."""
        return fetch(self._metrics_url, "GET", "/metrics").decode()

    def engines(self) -> dict[str, dict[str, str]]:
        """Return by model what computes its network, as the engines in Python models report it in their metrics."""
        found = (dict(_LABEL.findall(labels)) for labels in _ENGINE.findall(self.metrics()))
        return {facts.pop("model"): facts for facts in found}

    def index(self) -> list[dict[str, str]]:
        """Return `name`, `version`, `state` and `reason` of every model."""
        return self._json("POST", "/v2/repository/index")

    def loaded(self) -> set[tuple[str, str]]:
        """Return name and version of every model in state READY."""
        return {(entry["name"], entry.get("version", "")) for entry in self.index() if entry.get("state") == "READY"}

    def config(self, model: str) -> dict[str, Any]:
        """Return a model's configuration."""
        return self._json("GET", f"/v2/models/{quote(model)}/config")

    def is_ready(self, model: str) -> bool:
        """Return whether a model reports that it is ready. Triton 25.12 and later report a dead stub here."""
        try:
            self.call("GET", f"/v2/models/{quote(model)}/ready")
        except CallError as error:
            if error.status is None:
                raise
            return False
        return True

    def answered(self) -> dict[str, int]:
        """Return how many requests each model has answered so far, with a result or an error."""
        counts: dict[str, int] = {}
        for entry in self._json("GET", "/v2/models/stats")["model_stats"]:
            totals = entry["inference_stats"]
            done = int(totals["success"].get("count", 0)) + int(totals["fail"].get("count", 0))
            counts[entry["name"]] = counts.get(entry["name"], 0) + done
        return counts

    def busy_seconds(self) -> dict[tuple[str, str], float]:
        """Return by name and version how long the instances of each model have been at work, each batch once.

        Copying the tensors in and out is work, too. An ensemble has the sum of its steps.
        """
        return {
            (entry["name"], entry["version"]): sum(
                (int(batch[phase]["ns"]) / 1e9 for batch in entry.get("batch_stats", ()) for phase in _AT_WORK), 0.0
            )
            for entry in self._json("GET", "/v2/models/stats")["model_stats"]
        }

    def pending(self) -> Mapping[str, int]:
        """Return how many requests wait for each model, without those that the model works on."""
        return queues(self._metrics_url).pending

    def reload(self, model: str) -> None:
        """Load a model again in place: the old one serves until the new one is ready."""
        self.load(model, with_a_change(self.config(model)))

    def load(
        self, model: str, config: Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Load a model; a model that serves under this name ends when the new one is ready.

        Args:
            model: name of the model.
            config: configuration to use instead of the repository's.
            files: contents by `<version>/<name>`, to use instead of the repository's files. Triton keeps a copy of them
                in a folder of its own while the model is loaded.
        """
        parameters = {f"file:{path}": base64.b64encode(content).decode() for path, content in (files or {}).items()}
        if config is not None:
            parameters["config"] = json.dumps(config)
        body = json.dumps({"parameters": parameters}).encode()
        self.call("POST", f"/v2/repository/models/{quote(model)}/load", body, timeout=_LOAD_TIMEOUT_S)

    def unload(self, model: str, *, timeout: float = TIMEOUT_S) -> None:
        """Take no new requests for a model. It is in state UNLOADING until the requests in flight are answered.

        Args:
            model: name of the model.
            timeout: seconds to wait; Triton first finishes the loads that have begun.
        """
        self.call("POST", f"/v2/repository/models/{quote(model)}/unload", b"{}", timeout=timeout)

    def _json(self, method: str, path: str) -> Any:
        content = self.call(method, path)
        try:
            return json.loads(content)
        except ValueError as error:
            raise CallError(f"{method} {path}: not JSON: {error}") from error
