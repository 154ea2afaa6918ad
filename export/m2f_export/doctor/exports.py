"""The exports in a repository: which models belong together, and what each of them does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf import json_format

from m2f.ensembles import Ensemble, read_ensemble
from m2f_export.doctor.model_configs import Model

_MAPS = ("panoptic", "semantic")  # outputs whose steps have parameters, besides those of `read_ensemble`


@dataclass
class Export:
    """The models around one engine.

    Attributes:
        engine: the model that runs the network; None if its folder is missing.
        names: names of the ensembles that use the engine.
        models: the ensembles and their steps, by name.
        preprocess: the step that takes images; None without such a step.
        readers: the steps that read the logits and have parameters: `postprocess`, `panoptic`, `semantic`.
    """

    engine: Model | None
    names: list[str] = field(default_factory=list)
    models: dict[str, Model] = field(default_factory=dict)
    preprocess: Model | None = None
    readers: dict[str, Model] = field(default_factory=dict)


def read_exports(models: Mapping[str, Model]) -> list[Export]:
    """Return the exports of a repository. Models of other origin belong to none.

    The ensembles of an export make `num_instances`. Those that use the same engine are of one export.
    """
    exports: dict[str, Export] = {}
    for name, model in models.items():
        found = _ensemble(model)
        if found is None or found.engine is None or not _makes(model, "num_instances"):
            continue
        export = exports.setdefault(found.engine, Export(models.get(found.engine)))
        export.names.append(name)
        export.models |= {step: models[step] for step in (name, *found.steps) if step in models}
        if found.preprocess is not None and found.preprocess in models:
            export.preprocess = models[found.preprocess]
        roles = {"postprocess": found.postprocess, **{output: _maker(model, output) for output in _MAPS}}
        export.readers |= {role: models[step] for role, step in roles.items() if step is not None and step in models}
    return list(exports.values())


def _ensemble(model: Model) -> Ensemble | None:
    if model.config is None:
        return None
    return read_ensemble(json_format.MessageToDict(model.config, preserving_proto_field_name=True))


def _makes(model: Model, output: str) -> bool:
    return model.config is not None and any(tensor.name == output for tensor in model.config.output)


def _maker(model: Model, output: str) -> str | None:
    """Return the step of an ensemble whose model makes an output."""
    assert model.config is not None  # it is an ensemble
    steps = model.config.ensemble_scheduling.step
    return next((step.model_name for step in steps if output in step.output_map), None)
