"""The fields of KServe's objects, as its package for Python lists them.

The package's classes are not imported, for that needs a hundred megabytes of other packages. Their tables are read.
"""

import ast
import functools
import importlib.metadata
import re
from pathlib import Path

SIMPLE = {"str": str, "int": int, "bool": bool}


@functools.cache
def table(class_name):
    """JSON name -> type of the fields of a class; None for a class that is not KServe's."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()
    path = Path(importlib.metadata.distribution("kserve").locate_file(f"kserve/models/{name}.py"))
    if not path.exists():
        return None
    (found,) = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in found.body
        if isinstance(node, ast.Assign) and node.targets[0].id in ("openapi_types", "attribute_map")
    }
    return {json_name: tables["openapi_types"][name] for name, json_name in tables["attribute_map"].items()}


def problems(value, kind, path, foreign):
    """Yield what is wrong with a value of a type, and put the parts of Kubernetes' own types into `foreign`.

    Args:
        value: as it was read from YAML.
        kind: the type, as KServe's tables write it.
        path: where the value stands, for the message.
        foreign: list of (path, type, value) of what KServe leaves to Kubernetes.
    """
    if kind in SIMPLE:
        if type(value) is not SIMPLE[kind]:
            yield f"{path} is not {kind}"
    elif inner := re.fullmatch(r"(?:list\[|dict\(str, )(.+)[\])]", kind):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from problems(item, inner[1], f"{path}.{name}", foreign)
    elif (fields := table(kind)) is None:
        foreign.append((path, kind, value))
    else:
        yield from (f"{path}.{name} is no field of {kind}" for name in value.keys() - fields.keys())
        for name in value.keys() & fields.keys():
            yield from problems(value[name], fields[name], f"{path}.{name}", foreign)
