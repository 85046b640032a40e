"""From a model of the spec to stages that can be placed.

Read ``stage_model`` first; ``single_pass`` or ``generative`` make the stages, ``profiled_laws`` replaces
their laws by those of a profile file, and ``memory`` says what would help when they fit no GPU.
"""

from muplan.staging.generative import longest_request
from muplan.staging.stage_model import isolated_latency_ms, stage_model
from muplan.staging.staged_model import Partition, StagedModel

__all__ = ["Partition", "StagedModel", "isolated_latency_ms", "longest_request", "stage_model"]
