"""deploy/helm/m2f: what helm and the schemas say of it, and that it asks m2f serve only for what there is."""

import re
import tarfile
from pathlib import Path

import pytest
import yaml
from chart import CHART, SETS, containers, deployment, helm, named, objects, of_kind, pods, rendered, template
from manifests import check

from m2f_cli.serve import serve

ROOT = Path(__file__).parents[1]
EVERY_SET = pytest.mark.parametrize("name", SETS)
LOCKED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def data(manifests):
    """The files of the front."""
    return of_kind(manifests, "ConfigMap")[0]["data"]


@pytest.mark.parametrize("name", ["default", "balancer"])
def test_helm_has_nothing_to_say(name):
    run = helm("lint", "--strict", CHART, *(f"--values={file}" for file in SETS[name]))
    assert run.returncode == 0
    assert "[" not in run.stdout.replace("[INFO]", "")


@EVERY_SET
def test_kubernetes_and_operators_take_the_objects(name):
    for manifest in rendered(name):
        check(manifest)


def test_an_unknown_field_is_found():
    """The check itself: of Kubernetes' objects and of an operator's."""
    (monitor,) = of_kind(rendered("exposed"), "PodMonitor")
    (budget,) = of_kind(rendered("exposed"), "PodDisruptionBudget")
    for manifest in (monitor, budget):
        with pytest.raises(Exception, match="scrapePort"):
            check(manifest | {"spec": manifest["spec"] | {"scrapePort": 1}})


@EVERY_SET
def test_names_are_unique(name):
    found = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in rendered(name)]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch(r"m2f(-[a-z]+)?", name) for _, name in found)


def test_two_releases_stand_beside_each_other():
    first, second = rendered("exposed"), objects(template(*SETS["exposed"], release="left"))
    names = [[manifest["metadata"]["name"] for manifest in manifests] for manifests in (first, second)]
    assert names[1] == [f"left-{name}" for name in names[0]]
    selectors = [deployment(manifests)["spec"]["selector"] for manifests in (first, second)]
    assert selectors[0] != selectors[1]


@EVERY_SET
def test_selectors_find_the_pods(name):
    labels = [pod["metadata"]["labels"] for pod in pods(rendered(name))]
    for manifest in rendered(name):
        spec = manifest.get("spec", {})
        for selector in [spec[key] for key in ("selector", "podSelector") if key in spec]:
            assert labels.count(selector.get("matchLabels", selector)) == 1


@EVERY_SET
def test_ports_by_name_exist(name):
    names = {}
    for pod in pods(rendered(name)):
        ports = [port for container in named(pod["spec"]).values() for port in container.get("ports", [])]
        assert len({port["containerPort"] for port in ports}) == len(ports)
        names[tuple(pod["metadata"]["labels"].values())] = {port["name"] for port in ports}
    for service in of_kind(rendered(name), "Service"):
        of_pod = names[tuple(service["spec"]["selector"].values())]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= of_pod
    for policy in of_kind(rendered(name), "NetworkPolicy"):
        of_pod = names[tuple(policy["spec"]["podSelector"]["matchLabels"].values())]
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} <= of_pod
    for monitor in of_kind(rendered(name), "PodMonitor"):
        of_pod = names[tuple(monitor["spec"]["selector"]["matchLabels"].values())]
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= of_pod


@EVERY_SET
def test_m2f_serve_knows_the_options_and_listens_on_the_ports(name):
    _, found = containers(rendered(name))
    options = serve.make_context("m2f serve", list(found["m2f"]["args"])).params
    ports = {port["name"]: port["containerPort"] for port in found["m2f"]["ports"]}
    assert {name: options[f"{name}_port"] for name in ports} == ports
    assert options["monitor_host"] != "127.0.0.1"
    assert (options["host"] != "127.0.0.1") == ("front" not in found)
    assert options["extra_args"] == ()


@EVERY_SET
def test_the_server_gives_up_before_the_probes_do(name):
    _, found = containers(rendered(name))
    probe = found["m2f"]["startupProbe"]
    seconds = probe["periodSeconds"] * probe["failureThreshold"]
    options = serve.make_context("m2f serve", list(found["m2f"]["args"])).params
    assert seconds - 120 < options["timeout"] < seconds - 60  # of the first canary
    assert deployment(rendered(name))["spec"]["progressDeadlineSeconds"] > seconds


@EVERY_SET
def test_a_pod_may_finish_what_is_in_flight(name):
    pod, found = containers(rendered(name))
    options = serve.make_context("m2f serve", list(found["m2f"]["args"])).params
    assert pod["terminationGracePeriodSeconds"] > options["drain_delay"] + options["drain_timeout"] + 10
    probe = found["m2f"]["readinessProbe"]
    assert options["drain_delay"] > probe["periodSeconds"] * probe["failureThreshold"]
    assert deployment(rendered(name))["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@EVERY_SET
def test_the_pod_has_no_rights(name):
    for pod in [found["spec"] for found in pods(rendered(name))]:
        for container in named(pod).values():
            assert container["securityContext"] == LOCKED
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


@EVERY_SET
def test_mounts_have_volumes(name):
    for pod in [found["spec"] for found in pods(rendered(name))]:
        volumes = [volume["name"] for volume in pod["volumes"]]
        mounts = {mount["name"] for container in named(pod).values() for mount in container["volumeMounts"]}
        assert sorted(mounts) == sorted(volumes)


def test_only_the_front_is_reached():
    services = {service["metadata"]["name"]: service["spec"] for service in of_kind(rendered("default"), "Service")}
    assert services["m2f"]["ports"] == [{"name": "front", "port": 443, "targetPort": "front"}]
    assert services["m2f-pods"]["ports"] == [{"name": "front", "port": 8443, "targetPort": "front"}]
    assert services["m2f-pods"]["clusterIP"] == "None"
    (policy,) = of_kind(rendered("default"), "NetworkPolicy")
    assert [rule["ports"] for rule in policy["spec"]["ingress"] if "from" not in rule] == [[{"port": "front"}]]
    assert policy["spec"]["egress"] == []


def test_without_the_front_only_the_named_clients_reach_the_server():
    (policy,) = of_kind(rendered("download"), "NetworkPolicy")
    rules = {tuple(port["port"] for port in rule["ports"]): rule["from"] for rule in policy["spec"]["ingress"]}
    assert set(rules) == {("http", "grpc", "health"), ("metrics", "health")}
    assert [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]] == [53, 53, 443, 4318]


def test_the_front_is_the_one_in_deploy_nginx():
    files = {path.name: path.read_text() for path in (ROOT / "deploy/nginx").iterdir()}
    assert data(rendered("default")) | {"mtls.conf": files["mtls.conf"]} == files
    assert data(rendered("exposed")).keys() == files.keys()
    for name in ("default", "exposed"):
        _, found = containers(rendered(name))
        mounts = [mount for mount in found["front"]["volumeMounts"] if "subPath" in mount]
        folders = {"njs.conf": "modules.d/", "mtls.conf": "m2f.d/"}
        assert {mount["subPath"]: mount["mountPath"] for mount in mounts} == {
            file: f"/etc/nginx/{folders.get(file, '')}{file}" for file in data(rendered(name))
        }


def test_the_front_follows_the_values():
    ports = {"http": 9000, "grpc": 9001, "metrics": 9002, "health": 9003, "front": 9443}
    manifests = objects(template(ports=ports, listen="::", **{"front.models": ["parts", "mask2former"]}))
    before, after = (data(found)["nginx.conf"].splitlines() for found in (rendered("default"), manifests))
    changed = [new.strip() for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [
        "server 127.0.0.1:9000;",
        "server 127.0.0.1:9001;",
        'default "parts mask2former";',
        "listen [::]:9443 ssl ipv6only=off;",
    ]
    first, second = (deployment(found)["spec"]["template"] for found in (rendered("default"), manifests))
    assert first["metadata"]["annotations"] != second["metadata"]["annotations"]  # so that the pods are replaced


def test_prometheus_gets_the_rules_of_deploy_prometheus():
    (rule,) = of_kind(rendered("exposed"), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/m2f.rules.yml").read_text())
    (monitor,) = of_kind(rendered("exposed"), "PodMonitor")
    job = deployment(rendered("exposed"))["spec"]["template"]["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert job == "m2f"  # the job that the rules are about; see test_monitoring.py


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("default", {"persistentVolumeClaim": {"claimName": "m2f-models", "readOnly": True}}),
        ("mig", {"image": {"reference": "registry.example/m2f-models:2026-11", "pullPolicy": "IfNotPresent"}}),
        ("download", {"emptyDir": {"sizeLimit": "8Gi"}}),
    ],
)
def test_the_repository_comes_from_where_the_values_say(name, source):
    pod, found = containers(rendered(name))
    assert [volume for volume in pod["volumes"] if volume["name"] == "models"] == [{"name": "models"} | source]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in found["m2f"]["volumeMounts"]
    assert found["m2f"]["args"][0] == "--model-repository=/models/repository"
    assert ("download" in found) == (name == "download")


def test_a_gpu_is_asked_for_by_its_name():
    limits = {name: containers(rendered(name))[1]["m2f"]["resources"]["limits"] for name in SETS}
    assert limits["default"] == {"memory": "16Gi", "nvidia.com/gpu": 1}
    assert limits["mig"] == {"memory": "16Gi", "nvidia.com/mig-1g.10gb": 1}
    assert limits["processor"] == {"cpu": "2", "memory": "3Gi"}
    pod, _ = containers(rendered("mig"))
    assert pod["runtimeClassName"] == "nvidia"


def test_names_that_look_like_numbers_stay_names():
    values = {
        "serviceAccountName": "1",
        "monitoring.namespace": "2",
        "image.pullSecrets": ["3"],
        "front.tlsSecret": "4",
    }
    manifests = objects(template(release="5", **values))
    for manifest in (deployment(manifests), *of_kind(manifests, "NetworkPolicy"), *of_kind(manifests, "Service")):
        check(manifest)


def test_the_package_has_everything(tmp_path):
    """A package of the chart has the files that its links lead to, and renders the same."""
    assert helm("package", CHART, "--destination", tmp_path).returncode == 0
    (package,) = tmp_path.iterdir()
    with tarfile.open(package) as content:
        assert all(member.isfile() for member in content)
        assert not [name for name in content.getnames() if "/ci/" in name]
    for name in ("default", "exposed"):
        assert objects(template(*SETS[name], chart=package)) == rendered(name)


def test_the_version_is_the_projects():
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (version,) = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert about["version"] == about["appVersion"] == version


def test_the_manual_names_every_value():
    text = (ROOT / "docs/kubernetes.md").read_text()
    assert [name for name in yaml.safe_load((CHART / "values.yaml").read_text()) if f"`{name}`" not in text] == []
