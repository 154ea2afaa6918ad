"""Check a model repository before a server starts on it."""

from collections.abc import Sequence
from pathlib import Path

from m2f_server.serve_errors import RepositoryError

REPORT = "export.json"  # in the folder of an export's ensemble; before exports had names, in the repository


def check_repository(repository: Path, *, config_name: str | None, load: Sequence[str] = ()) -> list[str]:
    """Return the names of the models that Triton is to load.

    Args:
        repository: the folder of models.
        config_name: configuration to use for each model that has `configs/<name>.pbtxt`; None for `config.pbtxt`.
        load: names of the models to load; Triton loads the steps of an ensemble with it. Empty for all models.

    Raises:
        RepositoryError: the folder does not exist or has no model, or no model has that configuration or one of the
            names. Triton would start without a model, or use `config.pbtxt` silently.
    """
    if not repository.is_dir():
        raise RepositoryError(f"model repository {repository}: no such folder")
    models = sorted(path for path in repository.iterdir() if path.is_dir() and _is_model(path))
    if not models:
        raise RepositoryError(f"model repository {repository}: no model in it (a folder with config.pbtxt each)")
    if config_name is not None and not any((m / "configs" / f"{config_name}.pbtxt").is_file() for m in models):
        known = sorted({path.stem for model in models for path in model.glob("configs/*.pbtxt")})
        raise RepositoryError(
            f"model repository {repository}: no model has configs/{config_name}.pbtxt "
            f"(configurations there: {', '.join(known) or 'none'})"
        )
    names = [model.name for model in models]
    if unknown := [name for name in load if name not in names]:
        raise RepositoryError(
            f"--load {unknown[0]}: model repository {repository} has no such model (models there: {', '.join(names)})"
        )
    return list(dict.fromkeys(load)) or names


def is_export(model: Path) -> bool:
    """Return whether a model's folder is the public ensemble of an export."""
    return (model / REPORT).is_file()


def is_old(repository: Path) -> bool:
    """Return whether a repository has an export of before exports had names."""
    return (repository / REPORT).is_file()


def _is_model(folder: Path) -> bool:
    return (folder / "config.pbtxt").is_file() or any(p.is_dir() and p.name.isdigit() for p in folder.iterdir())
