"""Ensembles: do the steps fit together, and does every subset of outputs work.

Triton prunes the steps that a request's outputs do not need, and prunes too much where an output is also an inner
tensor, or where an input is read only by steps that may be pruned and not by the first: the request then fails with
"unexpected deadlock" (triton-inference-server/server#7482, and `ensemble_scheduler.cc`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from m2f_export.doctor.findings import Finding, error, listed
from m2f_export.doctor.model_configs import DEFAULT, Model, dims_fit, dtype


class Tensor(NamedTuple):
    """A tensor that travels between steps."""

    dtype: str
    dims: tuple[int, ...]


class Ensemble:
    """One ensemble with the configurations of its steps."""

    def __init__(self, path: Path, config: Any, models: dict[str, Model]) -> None:
        self.path, self.config = path, config
        self.steps = list(self.config.ensemble_scheduling.step)
        self.inner = [models[s.model_name].config if s.model_name in models else None for s in self.steps]
        self.inputs = {tensor.name: Tensor(dtype(tensor), tuple(tensor.dims)) for tensor in self.config.input}
        self.outputs = {tensor.name: Tensor(dtype(tensor), tuple(tensor.dims)) for tensor in self.config.output}

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
    for step, inner in zip(ensemble.steps, ensemble.inner, strict=True):
        name = step.model_name
        if inner is None:
            what = f"step '{name}': there is no such model, or its config.pbtxt cannot be read"
            why, fix = "Triton does not load the ensemble", f"add the folder {name}, or correct model_name"
            yield error("ensemble-model-missing", ensemble.path, what, why=why, fix=fix)
            continue
        for kind, mapped, real in (
            ("input", step.input_map, [t.name for t in inner.input if not t.optional]),
            ("output", step.output_map, [t.name for t in inner.output]),
        ):
            unknown = [key for key in mapped if key not in {t.name for t in getattr(inner, kind)}]
            missing = [key for key in real if key not in mapped] if kind == "input" else []
            if unknown or missing:
                what = f"step '{name}': {kind}_map "
                what += f"names {listed(unknown)}, which is no {kind} of it" if unknown else f"lacks {listed(missing)}"
                why = "Triton does not load the ensemble"
                fix = f"its {kind}s are: {listed(t.name for t in getattr(inner, kind))}"
                yield error("ensemble-map", ensemble.path, what, why=why, fix=fix)


def _tensors(ensemble: Ensemble) -> Iterator[Finding]:
    made = [*ensemble.inputs, *(value for step in ensemble.steps for value in step.output_map.values())]
    for name in sorted({name for name in made if made.count(name) > 1}):
        what, why = f"tensor '{name}' is made more than once", "Triton does not load the ensemble"
        yield error("ensemble-tensor-twice", ensemble.path, what, why=why, fix="give each its own name")
    readers = reversed(ensemble.steps)  # so that the first one is named
    read = {value: step.model_name for step in readers for value in step.input_map.values()}
    for name, reader in {**read, **dict.fromkeys(ensemble.outputs, "the client")}.items():
        if name not in made:
            what = f"tensor '{name}', for {reader}, is made by no step and is no input of the ensemble"
            fix = f"tensors there: {listed(made)}"
            yield error("ensemble-tensor-unmade", ensemble.path, what, why="Triton does not load the ensemble", fix=fix)


def _types(ensemble: Ensemble) -> Iterator[Finding]:
    made = dict(ensemble.inputs)
    pairs = [(s, c) for s, c in zip(ensemble.steps, ensemble.inner, strict=True) if c is not None]
    for step, inner in pairs:
        for tensor in inner.output:
            if tensor.name in step.output_map:
                made[step.output_map[tensor.name]] = Tensor(dtype(tensor), tuple(tensor.dims))
    readers = [
        (step.input_map[tensor.name], f"{step.model_name}'s '{tensor.name}'", Tensor(dtype(tensor), tuple(tensor.dims)))
        for step, inner in pairs
        for tensor in inner.input
        if tensor.name in step.input_map
    ]
    readers += [(name, f"the ensemble's output '{name}'", tensor) for name, tensor in ensemble.outputs.items()]
    for name, reader, wanted in readers:
        given = made.get(name, wanted)
        if given.dtype != wanted.dtype or not dims_fit(given.dims, wanted.dims):
            what = f"'{name}' is {given.dtype} {list(given.dims)}, {reader} is {wanted.dtype} {list(wanted.dims)}"
            why = "Triton does not load the ensemble"
            yield error("ensemble-types", ensemble.path, what, why=why, fix="make the two configurations say the same")


def _leaves(ensemble: Ensemble) -> Iterator[Finding]:
    for step in ensemble.steps:
        for name in step.input_map.values():
            if name in ensemble.outputs:
                what = f"the output '{name}' is also read by step '{step.model_name}'"
                why = "a request that does not ask for it fails with 'unexpected deadlock' (server#7482)"
                fix = f"let the step that makes it give it twice, and read the second, inner one (such as '_{name}')"
                yield error("ensemble-leaf", ensemble.path, what, why=why, fix=fix)
    for tensor in ensemble.config.input:
        if tensor.optional:
            what, why = f"the input '{tensor.name}' is optional", "steps are pruned wrongly: 'unexpected deadlock'"
            yield error("ensemble-optional", ensemble.path, what, why=why, fix="remove optional: true")


def _unread_inputs(ensemble: Ensemble) -> Iterator[Finding]:
    if not ensemble.steps or not ensemble.outputs:
        return
    always = set.intersection(*(ensemble.needed(output) for output in ensemble.outputs))
    safe = {value for i in {0, *always} for value in ensemble.steps[i].input_map.values()}
    for name in ensemble.inputs:
        readers = [step for step in ensemble.steps if name in step.input_map.values()]
        if readers and name not in safe:
            what = (
                f"the input '{name}' is read only by {listed(step.model_name for step in readers)}, "
                f"which some requests do not need, and the first step is {ensemble.steps[0].model_name}"
            )
            why = "Triton counts it as an unrequested output of the first step and prunes that: 'unexpected deadlock'"
            fix = f"put the step {readers[0].model_name} first in the list; the order does not say when steps run"
            yield error("ensemble-first-step", ensemble.path, what, why=why, fix=fix)


def _batch(ensemble: Ensemble) -> Iterator[Finding]:
    own = ensemble.config.max_batch_size
    for step, inner in zip(ensemble.steps, ensemble.inner, strict=True):
        if inner is not None and own > inner.max_batch_size:
            what = f"max_batch_size {own}, but {inner.max_batch_size} in its step {step.model_name}"
            why = "Triton does not load an ensemble that takes more than its steps"
            yield error("ensemble-batch", ensemble.path, what, why=why, fix="set both alike")
