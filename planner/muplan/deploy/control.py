"""Triton's HTTP control interface, as far as serving needs it: health, repository index, load."""

from __future__ import annotations

import http.client
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from muserve.errors import ServingError

# Backends whose instances are processes of the Python backend's stub; vLLM's is written in Python.
_PYTHON_BACKENDS = ("python", "vllm")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One line of the repository index. ``state`` is empty for a model that was never read."""

    name: str
    state: str
    reason: str

    @property
    def ready(self) -> bool:
        """Whether the model answers requests."""
        return self.state == "READY"


class TritonControl:
    """Control calls to the server at ``address:port``; each raises ServingError when it fails."""

    def __init__(self, address: str, port: int, timeout_s: float = 5.0) -> None:
        self._address = address
        self._port = port
        self._timeout_s = timeout_s

    def is_live(self) -> bool:
        """Whether the server answers; it does so only after it has tried to load every model."""
        try:
            self._call("GET", "/v2/health/live", self._timeout_s)
        except ServingError:
            return False
        return True

    def index(self) -> tuple[ModelState, ...]:
        """Every model of the repository with its state, in the order of the server."""
        lines = self._call("POST", "/v2/repository/index", self._timeout_s)
        return tuple(
            ModelState(name=line["name"], state=line.get("state", ""), reason=line.get("reason", ""))
            for line in lines
        )

    def python_instances(self, model: str) -> int:
        """How many Python processes the loaded configuration of ``model`` asks for; 0 without any."""
        config = self._config(model)
        if config.get("backend") not in _PYTHON_BACKENDS:
            return 0
        groups = config.get("instance_group", ())
        return sum(group["count"] * max(1, len(group.get("gpus", ()))) for group in groups)

    def inputs(self, model: str) -> tuple[dict[str, Any], ...]:
        """Input tensors of ``model`` as Triton describes them: name, datatype, shape."""
        return tuple(self._call("GET", f"/v2/models/{quote(model)}", self._timeout_s)["inputs"])

    def reload(self, model: str, directory: Path, timeout_s: float = 600.0) -> None:
        """Load ``model`` (its files are in ``directory``) anew, although nothing in it has changed.

        Triton starts new instances before it drops the old ones. It loads only what is newer than what
        it has, so the version directories are touched (touching config.pbtxt would not start new
        processes); where they are read-only, its configuration is sent with a new parameter in it.
        """
        body = {}
        try:
            for version in directory.iterdir():
                if version.is_dir() and version.name.isdigit():
                    os.utime(version)
        except OSError:
            config = self._config(model)
            config["parameters"]["reloaded_at"] = {"string_value": str(time.time_ns())}
            body = {"parameters": {"config": json.dumps(config)}}
        self._call("POST", f"/v2/repository/models/{quote(model)}/load", timeout_s, body)

    def _config(self, model: str) -> dict[str, Any]:
        config: dict[str, Any] = self._call("GET", f"/v2/models/{quote(model)}/config", self._timeout_s)
        return config

    def _call(self, method: str, path: str, timeout_s: float, body: object = None) -> Any:
        connection = http.client.HTTPConnection(self._address, self._port, timeout=timeout_s)
        try:
            connection.request(method, path, json.dumps(body or {}) if method == "POST" else None)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServingError(f"Triton does not answer {method} {path}: {error}") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ServingError(f"Triton refused {method} {path}: {_reason(content)}")
        return json.loads(content) if content else None


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace") or "no reason given"
