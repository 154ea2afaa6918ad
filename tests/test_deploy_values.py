"""Mistakes in the values of deploy/helm/m2f: each is refused, and the message names it."""

import re

import pytest
import yaml
from chart import CHART, template

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
DOWNLOAD = {"from": "download"}
PREDICT = {"enabled": True, "image": "m2f-predict:1", "input": "/input", "outputClaim": "results"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        # a typo, or a key of another chart
        ({"replicaCount": 3}, r"additional properties 'replicaCount' not allowed"),
        ({"gpu": {"cuont": 1}}, r"/gpu': additional properties 'cuont'"),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, r"/resources/limits': additional .* 'nvidia.com/gpu'"),
        ({"tolerations": [{"key": "gpu", "efect": "NoSchedule"}]}, r"/tolerations/0': additional properties 'efect'"),
        # a wrong type
        ({"replicas": "3"}, r"/replicas': got string, want integer"),
        ({"replicas": 2.5}, r"/replicas': got number, want integer"),
        ({"front": {"enabled": "false"}}, r"/front/enabled': got string, want boolean"),
        ({"front": {"models": "parts"}}, r"/front/models': got string, want array"),
        ({"nodeSelector": {"gpu": True}}, r"/nodeSelector/gpu': got boolean, want string"),
        ({"drain": {"delay": "10s"}}, r"/drain/delay': got string, want integer"),
        ({"image": {"tag": 1.1}}, r"/image/tag': got number, want string"),
        # a wrong value
        ({"engine": "cuda"}, r"/engine': value must be one of 'tensorrt', 'gpu'"),
        ({"replicas": -1}, r"/replicas': minimum: got -1, want 0"),
        ({"ports": {"health": 80030}}, r"/ports/health': maximum"),
        ({"sharedMemory": "8GB"}, r"/sharedMemory': '8GB' does not match"),
        ({"resources": {"requests": {"memory": "8Gb"}}}, r"/resources/requests/memory': '8Gb' does not match"),
        ({"gpu": {"resource": "gpu"}}, r"/gpu/resource': 'gpu' does not match"),
        ({"front": {"tlsSecret": ""}}, r"/front/tlsSecret': '' does not match"),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, r"/podDisruptionBudget/maxUnavailable': minimum"),
        ({"service": {"type": "Loadbalancer"}}, r"/service/type': value must be one of"),
        ({"autoscaling": {"prometheus": "prometheus:9090"}}, r"/autoscaling/prometheus': .* does not match"),
        ({"predict": {"url": "m2f:443"}}, r"/predict/url': 'm2f:443' does not match"),
        ({"image": {"repository": "m2f:1.0"}}, r"/image/repository': 'm2f:1.0' does not match"),
        # values that do not fit together
        ({"gpu": {"count": 0}}, r"/gpu/count': minimum: got 0, want 1"),
        ({"engine": "cpu"}, r"/gpu/count': value must be 0"),
        ({"drain": None}, r"missing property 'drain'"),
        ({"ports": {"health": None}}, r"/ports': missing property 'health'"),
        ({"rollingUpdate": {"maxSurge": "0%"}}, r"maxSurge and rollingUpdate\.maxUnavailable are both 0"),
        ({"front": {"enabled": False, "clientCA": True}}, r"/front/clientCA': value must be false"),
        ({"predict": PREDICT}, r"/predict/inputClaim': minLength"),
        ({"predict": {"input": "photos"}}, r"/predict/input': 'photos' does not match"),
        ({"balancer": {"enabled": True}}, r"/front/enabled': value must be false"),
        ({"repository": DOWNLOAD}, r"/repository/download/url': minLength"),
        ({"repository": DOWNLOAD | {"download": {"url": "https://models/x"}}}, r"/download/url': .* does not match"),
        ({"repository": {"from": "image"}}, r"/repository/image/reference': '' does not match"),
        ({"ports": {"health": 8002}}, r"ports\.health and ports\.metrics are both 8002"),
        ({"sharedMemory": "16Gi"}, r"sharedMemory 16Gi counts as memory: it must be less than .*, which is 16Gi"),
        ({"resources": {"requests": {"memory": "20Gi"}}}, r"resources\.requests\.memory 20Gi must be at most .* 16Gi"),
        ({"autoscaling": {"minReplicas": 9}}, r"autoscaling\.minReplicas 9 must be at most .*, which is 8"),
        ({"predict": {"enabled": True}}, r"/predict/image': '' does not match"),
        ({"predict": PREDICT | {"input": ""}}, r"/predict/list': minLength"),
        ({"predict": PREDICT | {"inputClaim": "photos", "outputClaim": ""}}, r"/predict/outputClaim': minLength"),
        ({"predict": PREDICT | {"inputClaim": "photos"}}, r"predict\.url must name the server"),
        ({"predict": {"parallelism": 9}}, r"predict\.parallelism 9 must be at most predict\.shards, which is 8"),
        ({"args": ["--health-port=9003"]}, r"/args/0': 'not' failed"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_refused_by_name(values, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    run = template(file)
    assert (run.returncode, run.stdout) == (1, "")
    assert re.search(message, run.stderr), run.stderr


def mappings(node, path=()):
    """The paths of the mappings whose keys are the chart's: not labels, annotations and what Kubernetes checks."""
    yield path
    for name, value in node.items():
        if isinstance(value, dict) and name not in ("nodeSelector", "affinity", "annotations", "labels"):
            yield from mappings(value, (*path, name))


def test_every_mapping_refuses_a_key_that_it_does_not_have():
    paths = list(mappings(VALUES))
    assert len(paths) > 15
    values = {}
    for path in paths:
        place = values
        for name in path:
            place = place.setdefault(name, {})
        place["unheardOf"] = 1
    refused = set(re.findall(r"at '(.*)': additional properties 'unheardOf' not allowed", template(**values).stderr))
    assert refused == {"".join(f"/{name}" for name in path) for path in paths}
