"""The embedded model once more, under another name."""

import re
import shutil
from pathlib import Path

from m2f.contract import PUBLIC_MODEL

EMBEDDED = Path(__file__).parents[1] / "model_repository"


def add_copy(repository: Path, name: str, **parameters: str) -> None:
    """Add the models of the embedded repository under a name; `parameters` replaces those of its post-processing."""
    for model in EMBEDDED.iterdir():
        target = repository / model.name.replace(PUBLIC_MODEL, name)
        shutil.copytree(model, target)
        for config in target.rglob("*.pbtxt"):
            text = config.read_text().replace(f'"{PUBLIC_MODEL}', f'"{name}')
            for key, value in parameters.items():
                text = re.sub(rf'(key: "{key}" value {{ string_value: )"[^"]*"', rf'\1"{value}"', text)
            config.write_text(text)
