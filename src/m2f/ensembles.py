"""Read what an ensemble consists of from its configuration.

Only `m2f export` composes names of models. Everything else finds the steps of a model here, so a model may have any
name, and models of other origin may stand beside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ensemble:
    """One ensemble and the models it chains.

    Attributes:
        name: name of the ensemble.
        public: whether clients send encoded images to it: `image` is its one input and `num_instances` an output.
        steps: names of the models it chains, each once, in the order of the configuration.
        preprocess: the step that takes `image`; None without such a step.
        engine: the step that takes `input`, the preprocessed images; None without such a step.
        postprocess: the step that makes `num_instances` of `cls_logits`; None without such a step.
    """

    name: str
    public: bool
    steps: tuple[str, ...]
    preprocess: str | None
    engine: str | None
    postprocess: str | None


def read_ensemble(config: Mapping[str, Any]) -> Ensemble | None:
    """Return what a model's configuration says of its steps; None if the model is no ensemble.

    Args:
        config: Triton's model configuration as a dict with the names of `model_config.proto`, as Triton's HTTP endpoint
            `v2/models/NAME/config` gives it. For a protobuf message:
            `MessageToDict(message, preserving_proto_field_name=True)`.
    """
    steps = config.get("ensemble_scheduling", {}).get("step", ())
    if not steps:
        return None
    inputs = [(tensor["name"], tensor["data_type"]) for tensor in config.get("input", ())]
    outputs = {tensor["name"] for tensor in config.get("output", ())}
    return Ensemble(
        name=config.get("name", ""),
        public=inputs == [("image", "TYPE_STRING")] and "num_instances" in outputs,
        steps=tuple(dict.fromkeys(step["model_name"] for step in steps)),
        preprocess=_step(steps, takes="image"),
        engine=_step(steps, takes="input"),
        postprocess=_step(steps, takes="cls_logits", makes="num_instances"),
    )


def steps_for(config: Mapping[str, Any], outputs: Iterable[str]) -> tuple[str, ...]:
    """Return the steps that an ensemble runs for a request, each once, in the order of the configuration.

    Args:
        config: configuration of the ensemble; see `read_ensemble`.
        outputs: names of the outputs that the request asks for.
    """
    steps = config.get("ensemble_scheduling", {}).get("step", ())
    wanted, needed = set(outputs), []
    while found := [s for s in steps if s not in needed and wanted & set(s.get("output_map", {}).values())]:
        needed += found
        wanted |= {tensor for step in found for tensor in step.get("input_map", {}).values()}
    return tuple(dict.fromkeys(step["model_name"] for step in steps if step in needed))


def _step(steps: list[Mapping[str, Any]], *, takes: str, makes: str | None = None) -> str | None:
    """Return the first step whose model takes and makes these tensors, by the model's own names of them."""
    for step in steps:
        if takes in step.get("input_map", {}) and (makes is None or makes in step.get("output_map", {})):
            return str(step["model_name"])
    return None
