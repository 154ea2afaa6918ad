"""Kubernetes' objects, checked strictly: an unknown field is an error, in the objects of operators too."""

import functools
import json

import kubernetes_validate
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus
from kserve_fields import problems

OF_OPERATORS = {
    ("keda.sh/v1alpha1", "ScaledObject"): keda.ScaledObject,
    ("monitoring.coreos.com/v1", "PodMonitor"): prometheus.PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): prometheus.PrometheusRule,
}
OF_KSERVE = {
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}
VERSIONS = ("1.33", "1.37")  # of Kubernetes: the oldest that can run the chart, and the newest that is known here


def check(manifest):
    """Raise an error if an object has an unknown field, lacks a field or has a wrong type."""
    kind = (manifest["apiVersion"], manifest["kind"])
    if kind in OF_OPERATORS:
        model = OF_OPERATORS[kind].model_validate(manifest)
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
def kubernetes_takes(text):
    """Raise an error if Kubernetes does not know an object like this one, given as JSON."""
    for version in VERSIONS:
        kubernetes_validate.validate(json.loads(text), version, strict=True)


def as_pod(parts):
    """A pod made of the (path, type, value) that KServe leaves to Kubernetes."""
    of_type = {kind: [value for _, found, value in parts if found == kind] for _, kind, _ in parts}
    (metadata,) = of_type.pop("V1ObjectMeta")
    containers = of_type.pop("V1Container", [{"name": "m2f", "image": "m2f"}])
    (security,) = of_type.pop("V1PodSecurityContext", [{}])
    spec = {"containers": containers, "volumes": of_type.pop("V1Volume", []), "securityContext": security}
    assert not of_type, f"not checked: {sorted(of_type)}"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
