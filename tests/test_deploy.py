"""deploy/: what tools say of its files, and m2f serve under the restrictions that they put on it."""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urljoin

import pytest
import yaml
from chart import containers, objects, of_kind, rendered, template
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from staging import put

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def load(path):
    return yaml.safe_load((DEPLOY / path).read_text())


def locked_down(*command):
    """Run a command as the image does: user 1000 without capabilities, on a read-only disk, with /tmp and /dev/shm."""
    setup = "mount -o remount,bind,ro / && mount -t proc proc /proc"
    setup += "".join(f" && mount -t tmpfs -o noexec,nosuid,nodev tmpfs {folder}" for folder in ("/tmp", "/dev/shm"))
    setup += " && cd /tmp"
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--", *command]
    own = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--"]
    return [*own, "sh", "-c", f'{setup} && exec "$@"', "sh", *user]


def can_lock_down():
    if not shutil.which("unshare"):
        return False
    command = locked_down(sys.executable, "-c", "pass")  # which a fresh /tmp hides, if it is in there
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).parent / "hadolint"
    run = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")


def test_the_image_starts_from_no_triton_with_known_holes():
    (line,) = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("ARG TRITON=")]
    assert Version(line.partition("=")[2]) >= Version("26.07")


def test_the_image_pins_all_that_it_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    queue = [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["models"]]]
    wanted = {}
    while queue:
        requirement = queue.pop()
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            wanted.setdefault(canonicalize_name(requirement.name), []).append(requirement.specifier)
            queue += map(Requirement, importlib.metadata.requires(requirement.name) or [])
    lines = [line for line in (DEPLOY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    assert set(pinned) == set(wanted)
    assert all(version in specifier for name, version in pinned.items() for specifier in wanted[name])
    assert Version(pinned["opencv-python-headless"]) >= Version("4.12")  # CVE-2025-53644
    assert Version(pinned["numpy"]) >= Version("2")  # which this OpenCV needs


def in_chart():
    """The pod of the chart with its default values, and its containers by name."""
    return containers(rendered("default"))


def test_only_the_front_is_reached():
    services = load("compose.yaml")["services"]
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "net": ["8443:8443"]
    }
    assert "--host" not in services["m2f"]["command"]


def test_front_and_server_can_be_restarted_alone():
    services = load("compose.yaml")["services"]
    shared = {name: service["network_mode"] for name, service in services.items() if "network_mode" in service}
    assert shared == {"m2f": "service:net", "front": "service:net"}


def test_the_front_may_finish_what_is_in_flight():
    waits = [
        re.findall(r"_read_timeout (\d+)s;", path.read_text()) for path in (DEPLOY / "nginx").glob("triton_*.conf")
    ]
    grace = load("compose.yaml")["services"]["front"]["stop_grace_period"]
    assert all(int(grace.removesuffix("s")) > int(seconds) for (seconds,) in waits)


def option(arguments, name):
    return arguments[arguments.index(name) + 1]


def test_the_server_gives_up_before_the_probes_do():
    """In the image, and in compose, which has the image's probe; see test_deploy_chart.py for the chart."""
    (image,) = re.findall(r"^CMD (.*)$", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    (minutes,) = re.findall(r"--start-period=(\d+)m", (DEPLOY / "Dockerfile").read_text())
    seconds = int(minutes) * 60
    for arguments in (load("compose.yaml")["services"]["m2f"]["command"], json.loads(image)):
        assert seconds - 120 < int(option(arguments, "--timeout")) < seconds - 60  # of the first canary


def test_tensors_have_room():
    pod, named = in_chart()
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
    service = load("compose.yaml")["services"]["m2f"]
    room = int(service["shm_size"].removesuffix("g"))
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": f"{room}Gi"}
    assert room < int(service["mem_limit"].removesuffix("g"))  # of which it is a part
    assert named["m2f"]["resources"]["limits"]["memory"] == f"{service['mem_limit'].removesuffix('g')}Gi"


def test_the_folder_above_the_repository_is_mounted():
    service = load("compose.yaml")["services"]["m2f"]
    (image,) = re.findall(r"^CMD (.*)$", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    for arguments in (service["command"], json.loads(image)):
        assert option(arguments, "--model-repository") == "/models/repository"
    assert [volume.rpartition("}")[2] for volume in service["volumes"]] == [":/models:ro"]


@pytest.mark.skipif(not can_lock_down(), reason="no user namespaces here")
@pytest.mark.parametrize(("mounted", "is_seen"), [("", True), ("repository", False)])
def test_an_export_on_the_host_is_seen_through_that_mount(mounted, is_seen, tmp_path):
    models, place = tmp_path / "models", tmp_path / "container" / mounted
    place.mkdir(parents=True)
    put(models / "repository", content="old")
    shows = 'mount --bind "$1" "$2" && echo mounted && read line && cat "$3/mask2former/config.pbtxt"'
    inside = ["unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-c", shows, "sh"]
    command = [*inside, models / mounted, place, tmp_path / "container/repository"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as container:
        assert container.stdout.readline() == "mounted\n"
        put(models / "repository", content="new")
        seen, _ = container.communicate("\n", timeout=60)
    assert (seen == "new") == is_seen


def test_compose_is_as_strict():
    services = load("compose.yaml")["services"]
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "user", "cap_add"} & set(service)
        assert all(volume.endswith(":ro") for volume in service.get("volumes", []))
    _, named = in_chart()
    assert named["m2f"]["image"].partition(":")[0] == services["m2f"]["image"]
    assert named["front"]["image"] == services["front"]["image"]
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+", services["net"]["image"])  # Kubernetes has one of its own


def test_the_front_gets_its_whole_configuration():
    files = {path.name for path in (DEPLOY / "nginx").iterdir()} - {"mtls.conf"}  # which a site adds
    places = {name: f"/etc/nginx/{'modules.d/' if name == 'njs.conf' else ''}{name}" for name in files}
    volumes = load("compose.yaml")["services"]["front"]["volumes"]
    assert set(volumes[:-1]) == {f"./nginx/{name}:{place}:ro" for name, place in places.items()}


def test_the_front_may_open_what_its_connections_need():
    text = (DEPLOY / "nginx/nginx.conf").read_text()
    (files,) = re.findall(r"^worker_rlimit_nofile (\d+);", text, flags=re.MULTILINE)
    (connections,) = re.findall(r"worker_connections (\d+);", text)
    assert int(files) >= 2 * int(connections)


def test_bodies_have_room():
    text = (DEPLOY / "nginx/nginx.conf").read_text()
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", text)
    (in_memory,) = re.findall(r"client_body_buffer_size (\d+)m;", text)
    (requests,) = re.findall(r"limit_conn in_flight_of_all (\d+);", text)
    assert in_memory == megabytes  # where inference.js reads them
    _, named = in_chart()
    limit = named["front"]["resources"]["limits"]["memory"]
    assert (
        int(limit.removesuffix("Gi")) * 1024 > 2 * int(megabytes) * int(requests) + 512
    )  # njs copies what came by HTTP/2
    assert load("compose.yaml")["services"]["front"]["mem_limit"] == limit.removesuffix("i").lower()


@pytest.mark.server
@pytest.mark.skipif(not can_lock_down(), reason="no user namespaces here, or a checkout in /tmp")
def test_serve_without_rights_on_a_read_only_disk():
    """With the options that the chart gives it; what the chart asks of its ports is there."""
    check = "import os, pathlib, sys; assert os.getuid() == 1000; assert not os.access(sys.argv[1], os.W_OK); "
    check += "assert 'CapEff:\\t0000000000000000' in pathlib.Path('/proc/self/status').read_text()"
    subprocess.run(locked_down(sys.executable, "-c", check, str(ROOT / "model_repository")), check=True)

    values = {"engine": "cpu", "gpu": {"count": 0}, "drain": {"delay": 0}, "monitoring.podMonitor": True}
    manifests = objects(template(**values))
    _, named = containers(manifests)
    here = {"/models/repository": str(ROOT / "model_repository"), "0.0.0.0": "127.0.0.1"}
    arguments = [re.sub(r"-port=\d+", "-port=0", replaced(argument, here)) for argument in named["m2f"]["args"]]
    command = [sys.executable, "-c", "from m2f_cli.serve import serve; serve()", "--json", *arguments]
    process = subprocess.Popen(locked_down(*command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        ready = json.loads(process.stdout.readline())
        assert status(f"http://{ready['http']}/v2/health/ready") == 200
        paths = {(probe["port"], probe["path"]) for probe in gets(named["m2f"])}
        (monitor,) = of_kind(manifests, "PodMonitor")
        paths |= {(endpoint["port"], endpoint["path"]) for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        assert {port for port, _ in paths} == {"metrics", "health"}
        for port, path in paths:
            assert status(urljoin(ready[port], path)) == 200
        (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)  # m2f serve is process 1 in there
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def replaced(text, changes):
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def status(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.status


def gets(container):
    """What the probes of a container ask for."""
    return [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
