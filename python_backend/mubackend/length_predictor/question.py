"""Asking the predictor model from inside another model of the same Triton."""

from __future__ import annotations

from typing import Any

import numpy as np

from mubackend.length_predictor.service import Prediction

_PREDICTED = ("predicted_tokens", "priority", "arrival_ms")


def ask_predictor(pb_utils: Any, model: str, prompt: bytes, sampling: bytes) -> Prediction:
    """What ``model`` says of a prompt, in one blocking call; RuntimeError with Triton's reason.

    ``pb_utils`` is Triton's ``triton_python_backend_utils``; both texts are UTF-8.
    """
    texts = {"text_input": prompt, "sampling_parameters": sampling}
    response = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=list(_PREDICTED),
        inputs=[pb_utils.Tensor(name, np.array([text], np.object_)) for name, text in texts.items()],
    ).exec()
    if response.has_error():
        raise RuntimeError(response.error().message())
    tensors = [pb_utils.get_output_tensor_by_name(response, name) for name in _PREDICTED]
    tokens, priority, arrival_ms = (tensor.as_numpy()[0] for tensor in tensors)
    return Prediction(predicted_tokens=float(tokens), priority=int(priority), arrival_ms=int(arrival_ms))
