"""What a server says of itself during a benchmark: the steps of the model, and the time spent in each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m2f.ensembles import Ensemble, read_ensemble, steps_for
from m2f.errors import M2FError
from m2f_client.answer import readable
from m2f_client.step_times import Spent, spent
from m2f_client.transports.protocol import Connection, Deadline
from m2f_client.transports.served_models import engine_kind, input_size
from m2f_client.transports.waiting import run_blocking

_COUNTED_S = 1.0  # longest wait until the statistics count an answered request: Triton answers before it counts
_LOOK_S = 0.005
_TRUSTED = 0.9  # share of the answered requests that the statistics must count


@dataclass(frozen=True)
class Step:
    """A step that a request runs.

    Attributes:
        name: name of the step's model.
        role: preprocess, engine or postprocess; empty for another step.
        runs_on: what runs the step, in Triton's words: `python`, `tensorrt_plan`, ...
        instances: number of instances on a server.
        max_batch: largest batch.
        batches: whether Triton collects requests to batches.
        input_size: height and width of the engine's input; None for another step, and if the size is free.
        parameters: the step's parameters in the repository.
    """

    name: str
    role: str
    runs_on: str
    instances: int
    max_batch: int
    batches: bool
    input_size: tuple[int, int] | None
    parameters: Mapping[str, str]


class Observer:
    """Reads configurations and statistics of the servers behind one address.

    Args:
        connections: a connection to each server.
        model: name of the public model.
        outputs: names of the outputs that requests ask for.
        timeout: seconds for a call.

    Attributes:
        steps: the steps that a request runs; empty if the server does not say.
        blind: why there are no times by step; empty if there are.
    """

    def __init__(
        self, connections: Sequence[Connection], *, model: str, outputs: Sequence[str], timeout: float
    ) -> None:
        self._connections, self._model, self._timeout = connections, model, timeout
        self.steps: tuple[Step, ...] = ()
        self.blind = ""
        try:
            self.steps = self._read_steps(outputs)
            self._begin = self._spent()
        except M2FError as error:
            self.blind = f"no configuration or statistics from the server: {error}"

    def spent(self, answered: int) -> dict[str, Spent]:
        """Return what each model has done; empty without a right to see it.

        Args:
            answered: number of requests answered since this object was made. Waits until they are counted, at most
                a second.
        """
        deadline = Deadline(_COUNTED_S)
        while not self.blind:
            try:
                found = self._spent()
            except M2FError as error:
                self.blind = f"no more statistics from the server: {error}"
                break
            counted = _of(found, self._model).since(_of(self._begin, self._model)).requests
            if counted >= answered or not deadline.left():
                return found
            time.sleep(_LOOK_S)
        return {}

    def counted(self, before: Mapping[str, Spent], after: Mapping[str, Spent], answered: int) -> Spent | None:
        """Return what the model did between two statistics; None if they cannot be right.

        Args:
            before: the earlier statistics.
            after: the later statistics.
            answered: number of requests answered in between.
        """
        if self.blind:
            return None
        done = _of(after, self._model).since(_of(before, self._model))
        if done.requests >= _TRUSTED * answered:
            return done
        self.blind = (
            f"the server counted {max(0, done.requests)} of {answered} answered requests: it was stopped, or several "
            "servers stand behind this address"
        )
        return None

    def _read_steps(self, outputs: Sequence[str]) -> tuple[Step, ...]:
        config = self._config(self._model)
        with readable():
            ensemble, names = read_ensemble(config), steps_for(config, outputs)
        steps = []
        for name in names if ensemble is not None else ():
            step = self._config(name)
            with readable():
                steps.append(_step(step, _role(ensemble, name)))
        return tuple(steps)

    def _config(self, model: str) -> dict[str, Any]:
        return run_blocking(self._connections[0].model_config(model, self._timeout))

    def _spent(self) -> dict[str, Spent]:
        """Return the sum over all servers."""
        sums: dict[str, Spent] = {}
        for connection in self._connections:
            statistics = run_blocking(connection.statistics(self._timeout))
            with readable():
                found = spent(statistics)
            sums |= {name: done.plus(_of(sums, name)) for name, done in found.items()}
        return sums


def _of(sums: Mapping[str, Spent], model: str) -> Spent:
    return sums.get(model, Spent())


def _role(ensemble: Ensemble | None, name: str) -> str:
    roles = ("preprocess", "engine", "postprocess")
    return next((role for role in roles if getattr(ensemble, role) == name), "")


def _step(config: Mapping[str, Any], role: str) -> Step:
    groups = config.get("instance_group", ())
    return Step(
        name=config["name"],
        role=role,
        runs_on=engine_kind(config),
        instances=sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", ()))) for group in groups) or 1,
        max_batch=int(config.get("max_batch_size", 0)),
        batches="dynamic_batching" in config,
        input_size=input_size(config) if role == "engine" else None,
        parameters={name: value["string_value"] for name, value in config.get("parameters", {}).items()},
    )
