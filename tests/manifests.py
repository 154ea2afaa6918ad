"""Kubernetes' objects, checked strictly: an unknown field is an error, in the objects of operators too."""

import functools
import importlib.metadata
import importlib.util
import json
import sys

import kubernetes_validate
from kserve_fields import problems

kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)  # 2 MB an object
OF_OPERATORS = {  # the package with the objects of a version, and its file
    "keda.sh/v1alpha1": ("cloudcoil-models-keda", "keda/v1alpha1.py"),
    "monitoring.coreos.com/v1": ("cloudcoil-models-prometheus-operator", "prometheus_operator/v1.py"),
}
OF_KSERVE = {
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}
OLDEST, NEWEST = "1.33", "1.37"  # Kubernetes that can run the chart, and that is known here


def check(manifest):
    """Raise an error if an object has an unknown field, lacks a field or has a wrong type."""
    kind = (manifest["apiVersion"], manifest["kind"])
    if kind[0] in OF_OPERATORS:
        model = getattr(models(*OF_OPERATORS[kind[0]]), kind[1]).model_validate(manifest)
        kept = model.model_dump(by_alias=True, exclude_unset=True, mode="json")  # without what the model does not know
        assert kept == manifest, f"of {manifest} only {kept} is known"
    elif kind in OF_KSERVE:
        foreign = []
        found = list(problems(manifest, OF_KSERVE[kind], kind[1], foreign))
        assert not found, found
        check(as_pod(foreign))
    else:
        kubernetes_takes(json.dumps(manifest))


@functools.cache
def models(package, file):
    """The module of an operator's objects. It is loaded alone: its package imports more, which takes a second."""
    path = importlib.metadata.distribution(package).locate_file(f"cloudcoil/models/{file}")
    spec = importlib.util.spec_from_file_location(package, path)
    module = sys.modules[package] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def kubernetes_takes(text):
    """Raise an error if Kubernetes does not know an object like this one, given as JSON."""
    manifest = json.loads(text)
    changing = "template" in manifest.get("spec", {})  # what has pods gets new fields with each version
    for version in (OLDEST, NEWEST) if changing else (NEWEST,):
        kubernetes_validate.validate(manifest, version, strict=True)


def as_pod(parts):
    """A pod made of the (path, type, value) that KServe leaves to Kubernetes."""
    of_type = {kind: [value for _, found, value in parts if found == kind] for _, kind, _ in parts}
    (metadata,) = of_type.pop("V1ObjectMeta")
    containers = of_type.pop("V1Container", [{"name": "m2f", "image": "m2f"}])
    (security,) = of_type.pop("V1PodSecurityContext", [{}])
    spec = {"containers": containers, "volumes": of_type.pop("V1Volume", []), "securityContext": security}
    assert not of_type, f"not checked: {sorted(of_type)}"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
