"""Every file of a plan directory, by path: the plan, and for each node its Triton model repository.

    plan.json
    parts/<part>.json                                             parts that the catalogue does not have
    <node>/model_repository/<Triton model>/config.pbtxt
                                          /configs/cpu.pbtxt      for --model-config-name=cpu
                                          /1/model.py             a shim of ``mubackend``
                                          /1/partition.onnx       single-pass partitions
                                          /1/model.onnx           the same on target ngc, with weights
                                          /1/model.json           vLLM engines, target ngc
    <node>/{answers,predictor,weights}/   files the spec names
    <node>/chat_templates/<model>.json    where the language model brings one

No path inside a file is absolute, so the bytes depend on the spec and its sources only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from muplan.repository.chat_template import chat_template_files
from muplan.repository.contention import oversubscribed_gpus
from muplan.repository.directory import REPOSITORY_NAME, Artefact
from muplan.repository.generative import generative_configs
from muplan.repository.model_config import config_bytes, on_cpu
from muplan.repository.native_queue import native_configs
from muplan.repository.single_pass import single_pass_configs
from muplan.repository.triton_model import TritonModel
from muplan.repository.vllm import vllm_configs
from muplan.spec import SpecFile
from muplan.spec_serving import Target
from muplan.staging import StagedModel
from muserve.plan import PLAN_FILE, ModelKind, ModelPlan, Plan, plan_bytes


def artefacts(
    plan: Plan, staged: Sequence[StagedModel], spec_file: SpecFile
) -> dict[PurePosixPath, Artefact]:
    """The files of ``plan``; ``staged`` holds the graphs of its models, in any order."""
    files: dict[PurePosixPath, Artefact] = {PurePosixPath(PLAN_FILE): plan_bytes(plan)}
    parts = {name: part for model in staged for name, part in model.parts.items()}
    crowded = oversubscribed_gpus(plan, parts)
    sources = {model.spec.name: model for model in staged}
    for model in plan.models:
        node = _node(plan, model)
        for triton_model in _triton_models(plan, model, sources[model.name], spec_file, crowded):
            files.update(_model_files(PurePosixPath(node, REPOSITORY_NAME), triton_model))
            for name, source in triton_model.node_files.items():
                files[PurePosixPath(node, name)] = source
        if model.kind is ModelKind.GENERATIVE:
            for path, content in chat_template_files(sources[model.name].spec, spec_file).items():
                files[PurePosixPath(node) / path] = content
    return files


def _triton_models(
    plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile, crowded: frozenset[str]
) -> Sequence[TritonModel]:
    if model.kind is ModelKind.SINGLE_PASS:
        return single_pass_configs(plan, model, staged, spec_file, crowded)
    if spec_file.spec.serving.queue == "native":
        return native_configs(plan, model, staged, spec_file)
    if plan.target == Target.NGC:
        return vllm_configs(plan, model, staged, spec_file)
    return generative_configs(plan, model, staged, spec_file)


def _model_files(repository: PurePosixPath, model: TritonModel) -> dict[PurePosixPath, Artefact]:
    directory = repository / model.config.name
    files: dict[PurePosixPath, Artefact] = {directory / "config.pbtxt": config_bytes(model.config)}
    if model.config.instance_group:
        files[directory / "configs" / "cpu.pbtxt"] = config_bytes(on_cpu(model.config))
    # Triton wants a version directory even of an ensemble, and Git does not keep empty ones.
    version_files = model.version_files or {".keep": b""}
    return files | {directory / "1" / name: artefact for name, artefact in version_files.items()}


def _node(plan: Plan, model: ModelPlan) -> str:
    """The node that serves ``model``; the placement keeps the partitions of a model on one."""
    (node,) = {
        plan.gpu(name).node for p in model.partitions for replica in p.replicas for name in replica.gpus
    }
    return node
