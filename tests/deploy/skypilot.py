"""Checks a task of SkyPilot by SkyPilot's own schemas, without what SkyPilot depends on.

python tests/deploy/skypilot.py FILE: prints what is wrong, and exits with 1 if something is.

The schemas are made by one module, which imports half of SkyPilot for some lists of names. All that
it imports is stood in for, so that 4 MB are enough in place of 460. Lists that came out empty for
that reason check nothing, and are left out.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import jsonschema
import yaml

REAL = ("sky.utils", "sky.utils.schemas", "sky.utils.validator", "sky.skylet", "sky.skylet.constants")


class _StandIns(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        return ModuleSpec(name, self) if name.startswith("sky.") and name not in REAL else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return MagicMock(name=spec.name, __path__=[], __spec__=spec)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _checking(schema: Any) -> Any:
    """The schema without lists that came out empty, and without what is no JSON."""
    if isinstance(schema, dict):
        return {
            key: _checking(value)
            for key, value in schema.items()
            if not (key.endswith("enum") and not value) and not isinstance(value, MagicMock)
        }
    return [_checking(value) for value in schema] if isinstance(schema, list) else schema


def validator() -> jsonschema.protocols.Validator:
    """What checks a task with its service."""
    spec = find_spec("sky")
    if spec is None or spec.submodule_search_locations is None:
        sys.exit("expected the package skypilot, found none: pip install --no-deps skypilot==0.14.1")
    sky = ModuleType("sky")
    sky.__path__ = list(spec.submodule_search_locations)
    sky.__version__ = "0.14.1"
    sys.modules["sky"] = sky
    sys.meta_path.insert(0, _StandIns())
    from sky.utils import schemas
    from sky.utils.validator import get_schema_validator

    task = _checking(schemas.get_task_schema())
    task["properties"]["service"] = _checking(schemas.get_service_schema())
    task["properties"]["resources"] = _checking(schemas.get_resources_schema())
    return get_schema_validator()(task)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        faults = [f"{error.json_path}: {error.message}" for error in validator().iter_errors(yaml.safe_load(file))]
    print("\n".join(faults))
    sys.exit(1 if faults else 0)
