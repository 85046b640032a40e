"""Typed reading of the ``parameters`` that the planner writes into each model's ``config.pbtxt``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muserve.errors import InputError

VIRTUAL_UUID_PREFIX = "VGPU-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The string parameters of one Triton model, and where the model lies.

    ``directory`` is the model's directory, ``<plan dir>/<node>/model_repository/<model>``. ``replica`` is
    the number of the instance group, of which the planner makes one for each replica.
    """

    model: str
    version: str
    directory: Path
    parameters: Mapping[str, str]
    replica: int = 0

    @property
    def node_dir(self) -> Path:
        """The node's directory, beside whose repository the planner puts other files."""
        return self.directory.parent.parent

    @property
    def plan_dir(self) -> Path:
        """What ``muplan generate`` wrote."""
        return self.node_dir.parent

    @property
    def version_dir(self) -> Path:
        """Where this version's ``model.py`` and graph are."""
        return self.directory / self.version

    @property
    def is_virtual(self) -> bool:
        """Whether the model's GPU is a virtual one."""
        return self.parameters.get("gpu_uuid", "").startswith(VIRTUAL_UUID_PREFIX)

    @property
    def replicas(self) -> int:
        """How many replicas the planner made of the model."""
        return len(self.text("gpu").split(";"))

    @property
    def gpu(self) -> str:
        """Names of this replica's GPUs, separated by commas; InputError when there is none for it."""
        return self._of_replica("gpu")

    @property
    def gpu_uuids(self) -> tuple[str, ...]:
        """UUIDs of this replica's GPUs; InputError when there is none for it."""
        return tuple(self._of_replica("gpu_uuid").split(","))

    def text(self, key: str, default: str | None = None) -> str:
        """A parameter as it is; InputError when it is missing and there is no default."""
        value = self.parameters.get(key, "")
        if value:
            return value
        if default is None:
            raise InputError(f"{self._place(key)}: required parameter is missing")
        return default

    def number(self, key: str, default: float | None = None, *, infinite: bool = False) -> float:
        """A parameter as a number >= 0; InputError when it is not one."""
        text = self.text(key, None if default is None else repr(default))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (value >= 0.0 and (infinite or value < math.inf)):
            raise InputError(f"{self._place(key)}: expected a number >= 0, got {text!r}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A parameter as a whole number >= 1; InputError when it is not one."""
        text = self.text(key, None if default is None else str(default))
        if not text.isdecimal() or int(text) < 1:
            raise InputError(f"{self._place(key)}: expected a whole number >= 1, got {text!r}")
        return int(text)

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        """A parameter that is one of a few words; InputError when it is another."""
        value = self.text(key, default)
        if value not in choices:
            raise InputError(f"{self._place(key)}: expected one of {', '.join(choices)}, got {value!r}")
        return value

    def _of_replica(self, key: str) -> str:
        values = self.text(key).split(";")
        if self.replica >= len(values):
            raise InputError(
                f"{self._place(key)}: expected an entry for each of at least {self.replica + 1} instance "
                f"groups, got {len(values)}"
            )
        return values[self.replica]

    def _place(self, key: str) -> str:
        return f"{self.model}/config.pbtxt: parameters: {key}"


def read_settings(args: Mapping[str, str]) -> Settings:
    """Settings from the ``args`` that Triton hands to ``TritonPythonModel.initialize``."""
    config: dict[str, Any] = json.loads(args["model_config"])
    parameters = config.get("parameters", {})
    return Settings(
        model=args["model_name"],
        version=args["model_version"],
        directory=Path(args["model_repository"]),
        parameters={key: value.get("string_value", "") for key, value in parameters.items()},
        replica=_instance_group(args["model_instance_name"], args["model_name"]),
    )


def _instance_group(instance: str, model: str) -> int:
    """The group in an instance's name ``<model>_<group>_<number>``; 0 for groups that have their own name.

    Names: https://github.com/triton-inference-server/common/blob/r24.10/protobuf/model_config.proto,
    ModelInstanceGroup.name.
    """
    group, _, number = instance.removeprefix(f"{model}_").partition("_")
    return int(group) if group.isdecimal() and number.isdecimal() else 0
