"""The public models of a server: which there are, and what each one is.

Triton's own list of models, the repository index, is for administrators: `m2f serve` asks a secret for it. Statistics
name every loaded model, and are open to everyone, like configurations. A proxy may block both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from m2f.ensembles import Ensemble, read_ensemble
from m2f.errors import M2FError
from m2f_client.answer import readable
from m2f_client.client_errors import ModelNotFound
from m2f_client.transports.protocol import Connection, Deadline

_HINT_S = 5.0  # longest time that an error may take longer for its hint


@dataclass(frozen=True)
class ServedModel:
    """A public model of a server.

    Attributes:
        name: name of the model, for `Client(model=...)`.
        size: height and width of the engine's input; None if they vary with the image.
        engine: what runs the engine, in Triton's words: `tensorrt_plan`, `onnxruntime_onnx`, `python`, `python (cuda)`;
            None if no step is an engine.
        versions: loaded versions of the engine.
    """

    name: str
    size: tuple[int, int] | None
    engine: str | None
    versions: tuple[str, ...]


class Hint:
    """Adds the names of the public models to the error for a model that is not there.

    A connection asks for the names once: a client that keeps asking for a wrong model must not multiply its requests.

    Args:
        connection: the connection to the server.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._text: str | None = None

    async def added_to(self, error: ModelNotFound, left: float | None) -> ModelNotFound:
        """Return the error with the names; unchanged if the server does not tell them.

        Args:
            error: the error of a request.
            left: seconds left for the request; None: any number.
        """
        if self._text is None:
            self._text = await self._ask(_HINT_S if left is None else min(left, _HINT_S))
        return ModelNotFound(f"{error}{self._text}")

    async def _ask(self, timeout: float) -> str:
        deadline = Deadline(timeout)
        try:
            found = await _public(self._connection, await _loaded(self._connection, deadline), deadline)
        except M2FError:
            return ""
        names = ", ".join(ensemble.name for ensemble in found)
        return f"; it has: {names}" if names else "; it has no model of m2f"


async def served_models(connection: Connection, timeout: float | None) -> list[ServedModel]:
    """Return the public models that a server has loaded, by name.

    Raises:
        M2FError: the server does not answer, or a proxy blocks statistics or configurations.
    """
    deadline = Deadline(timeout)
    loaded = await _loaded(connection, deadline)
    models = []
    for ensemble in await _public(connection, loaded, deadline):
        if ensemble.engine is None:  # steps that m2f has not made
            models.append(ServedModel(ensemble.name, None, None, ()))
            continue
        config = await connection.model_config(ensemble.engine, deadline.left())
        with readable():
            models.append(
                ServedModel(ensemble.name, input_size(config), engine_kind(config), loaded.get(ensemble.engine, ()))
            )
    return models


async def _loaded(connection: Connection, deadline: Deadline) -> dict[str, tuple[str, ...]]:
    """Return the loaded versions of each model, by name."""
    statistics = await connection.statistics(deadline.left())
    versions: dict[str, tuple[str, ...]] = {}
    with readable():
        for name, version in sorted((entry["name"], int(entry["version"])) for entry in statistics):
            versions[name] = (*versions.get(name, ()), str(version))
    return versions


async def _public(connection: Connection, names: Iterable[str], deadline: Deadline) -> list[Ensemble]:
    """Return the public ensembles among some models."""
    found = []
    for name in names:
        with suppress(ModelNotFound):  # unloaded meanwhile
            config = await connection.model_config(name, deadline.left())
            with readable():
                ensemble = read_ensemble(config)
            if ensemble is not None and ensemble.public:
                found.append(ensemble)
    return found


def input_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of an engine's input [H, W, 3] or [3, H, W]; None if one of them is free."""
    sides = [int(side) for side in config["input"][0]["dims"]]
    height, width = sides[:2] if sides[-1] in (1, 3) else sides[1:]
    return None if -1 in (height, width) else (height, width)


def engine_kind(config: Mapping[str, Any]) -> str:
    """Return the platform or backend, and the execution providers that a Python engine states."""
    kind: str = config.get("platform") or config["backend"]
    providers = config.get("parameters", {}).get("execution_providers", {}).get("string_value")
    return f"{kind} ({providers})" if providers else kind
