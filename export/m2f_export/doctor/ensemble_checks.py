"""Ensembles: whether the steps fit together, and whether every subset of outputs works.

Triton prunes the steps that a request's outputs do not need. It prunes too much in two cases: an output is also an
inner tensor, or an input is read only by steps that may be pruned and not by the first step. The request then fails
with "unexpected deadlock" (triton-inference-server/server#7482, and `ensemble_scheduler.cc`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from m2f_export.doctor import catalogue
from m2f_export.doctor.findings import Finding, listed
from m2f_export.doctor.model_configs import DEFAULT, Model, dims_fit, dtype


class Described(NamedTuple):
    """What a configuration says of a tensor."""

    dtype: str
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.dims)}"


def described(tensor: Any) -> Described:
    """Return what a configuration says of one of its tensors."""
    return Described(dtype(tensor), tuple(tensor.dims))


class Ensemble:
    """One ensemble with the configurations of its steps."""

    def __init__(self, path: Path, config: Any, models: dict[str, Model]) -> None:
        self.path, self.config = path, config
        self.steps = list(self.config.ensemble_scheduling.step)
        self.inner = [models[s.model_name].config if s.model_name in models else None for s in self.steps]
        self.found = [(step, inner) for step, inner in zip(self.steps, self.inner, strict=True) if inner is not None]
        self.inputs = {tensor.name: described(tensor) for tensor in self.config.input}
        self.outputs = {tensor.name: described(tensor) for tensor in self.config.output}

    def needed(self, output: str) -> set[int]:
        """Return the steps that an output needs, by position."""
        makers = {value: i for i, step in enumerate(self.steps) for value in step.output_map.values()}
        found: set[int] = set()
        waiting = [output]
        while waiting:
            maker = makers.get(waiting.pop())
            if maker is not None and maker not in found:
                found.add(maker)
                waiting += self.steps[maker].input_map.values()
        return found


def check_ensembles(models: dict[str, Model]) -> list[Finding]:
    """Check every ensemble of a repository."""
    checks: tuple[Callable[[Ensemble], Iterator[Finding]], ...] = (
        _models_and_maps, _tensors, _types, _leaves, _unread_inputs, _batch,
    )  # fmt: skip
    ensembles = [
        Ensemble(model.folder / DEFAULT, model.config, models)
        for model in models.values()
        if model.config is not None and is_ensemble(model.config)
    ]
    return [finding for ensemble in ensembles for check in checks for finding in check(ensemble)]


def is_ensemble(config: Any) -> bool:
    """Return whether a configuration is an ensemble's."""
    return config.platform == "ensemble" or config.HasField("ensemble_scheduling")


def _models_and_maps(ensemble: Ensemble) -> Iterator[Finding]:
    where = ensemble.path
    for step, inner in zip(ensemble.steps, ensemble.inner, strict=True):
        if inner is None:
            yield catalogue.ENSEMBLE_MODEL_MISSING(where, step=step.model_name)
            continue
        needed = {"input": {t.name for t in inner.input if not t.optional}, "output": set[str]()}
        for kind, mapped in (("input", step.input_map), ("output", step.output_map)):
            real = [tensor.name for tensor in getattr(inner, kind)]
            this = {"step": step.model_name, "kind": kind, "real": listed(real)}
            if unknown := [key for key in mapped if key not in real]:
                yield catalogue.ENSEMBLE_MAP_UNKNOWN(where, **this, names=listed(unknown))
            elif missing := sorted(needed[kind] - set(mapped)):
                yield catalogue.ENSEMBLE_MAP_LACKS(where, **this, names=listed(missing))


def _tensors(ensemble: Ensemble) -> Iterator[Finding]:
    made = [*ensemble.inputs, *(value for step in ensemble.steps for value in step.output_map.values())]
    for name in sorted({name for name in made if made.count(name) > 1}):
        yield catalogue.ENSEMBLE_TENSOR_TWICE(ensemble.path, name=name)
    readers = reversed(ensemble.steps)  # so that the first one is named
    read = {value: step.model_name for step in readers for value in step.input_map.values()}
    for name, reader in {**read, **dict.fromkeys(ensemble.outputs, "the client")}.items():
        if name not in made:
            yield catalogue.ENSEMBLE_TENSOR_UNMADE(ensemble.path, name=name, reader=reader, made=listed(made))


def _types(ensemble: Ensemble) -> Iterator[Finding]:
    made = dict(ensemble.inputs)
    for step, inner in ensemble.found:
        made |= {step.output_map[t.name]: described(t) for t in inner.output if t.name in step.output_map}
    readers = [
        (step.input_map[tensor.name], f"{step.model_name}'s '{tensor.name}'", described(tensor))
        for step, inner in ensemble.found
        for tensor in inner.input
        if tensor.name in step.input_map
    ]
    readers += [(name, f"the ensemble's output '{name}'", tensor) for name, tensor in ensemble.outputs.items()]
    for name, reader, wanted in readers:
        given = made.get(name, wanted)
        if given.dtype != wanted.dtype or not dims_fit(given.dims, wanted.dims):
            yield catalogue.ENSEMBLE_TYPES(ensemble.path, name=name, given=given, reader=reader, wanted=wanted)


def _leaves(ensemble: Ensemble) -> Iterator[Finding]:
    for step in ensemble.steps:
        for name in step.input_map.values():
            if name in ensemble.outputs:
                yield catalogue.ENSEMBLE_LEAF(ensemble.path, name=name, step=step.model_name)
    for tensor in ensemble.config.input:
        if tensor.optional:
            yield catalogue.ENSEMBLE_OPTIONAL(ensemble.path, name=tensor.name)


def _unread_inputs(ensemble: Ensemble) -> Iterator[Finding]:
    if not ensemble.steps or not ensemble.outputs:
        return
    always = set.intersection(*(ensemble.needed(output) for output in ensemble.outputs))
    safe = {value for i in {0, *always} for value in ensemble.steps[i].input_map.values()}
    for name in ensemble.inputs:
        readers = [step.model_name for step in ensemble.steps if name in step.input_map.values()]
        if readers and name not in safe:
            first = ensemble.steps[0].model_name
            yield catalogue.ENSEMBLE_FIRST_STEP(
                ensemble.path, name=name, readers=listed(readers), reader=readers[0], first=first
            )


def _batch(ensemble: Ensemble) -> Iterator[Finding]:
    own = ensemble.config.max_batch_size
    for step, inner in ensemble.found:
        if own > inner.max_batch_size:
            yield catalogue.ENSEMBLE_BATCH(ensemble.path, own=own, inner=inner.max_batch_size, step=step.model_name)
