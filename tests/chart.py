"""deploy/helm/m2f, as helm renders it."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).parents[1] / "deploy/helm/m2f"
HELM = Path(sys.executable).parent / "helm"
SETS = {"default": (), **{path.name.removesuffix("-values.yaml"): (path,) for path in sorted(CHART.glob("ci/*.yaml"))}}
"""Name -> files of values: the defaults, and the examples in the chart's folder `ci`."""


def helm(*arguments):
    """Run helm; return how it ended. Without the notes that it follows links, on standard error."""
    assert HELM.exists(), "helm is missing: make setup-dev installs it"
    run = subprocess.run([HELM, *arguments], capture_output=True, text=True, check=False)
    run.stderr = "".join(line for line in run.stderr.splitlines(keepends=True) if not line.startswith("level=INFO"))
    return run


def template(*files, release="m2f", chart=CHART, **values):
    """Run `helm template` with files of values, and with values by the names of their first level."""
    options = [option for file in files for option in ("--values", file)]
    options += [option for name, value in values.items() for option in ("--set-json", f"{name}={json.dumps(value)}")]
    return helm("template", release, chart, "--namespace", "vision", *options)


@functools.cache
def rendered(name):
    """The objects of one of the SETS."""
    return objects(template(*SETS[name]))


def objects(run):
    """The objects that `helm template` printed."""
    assert run.returncode == 0, run.stderr
    return [found for found in yaml.safe_load_all(run.stdout) if found]


def of_kind(manifests, kind):
    """The objects of a kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def deployment(manifests):
    """The Deployment of m2f itself."""
    (found,) = [
        manifest for manifest in of_kind(manifests, "Deployment") if manifest["metadata"]["name"].endswith("m2f")
    ]
    return found


def pods(manifests):
    """The pods of all Deployments and Jobs."""
    return [found["spec"]["template"] for kind in ("Deployment", "Job") for found in of_kind(manifests, kind)]


def containers(manifests):
    """m2f's own pod, and its containers by name."""
    pod = deployment(manifests)["spec"]["template"]["spec"]
    return pod, named(pod)


def named(pod):
    """The containers of a pod by name."""
    return {container["name"]: container for container in [*pod.get("initContainers", []), *pod["containers"]]}
