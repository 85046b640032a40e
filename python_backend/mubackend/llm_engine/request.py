"""One generation request as the engine accepts it, with the meaning of Triton's vLLM backend."""

from __future__ import annotations

from dataclasses import dataclass, field

from mubackend.failure import invalid
from mubackend.sampling import Sampling, parse_sampling
from mubackend.terms import Terms, parse_terms

DEFAULT_MAX_PROMPT_BYTES = 262_144


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A valid request. ``stream``: one response for each token; else one response with the whole text."""

    prompt: str
    stream: bool
    prepend_prompt: bool
    sampling: Sampling
    terms: Terms = field(default_factory=Terms)


def parse_request(
    prompt: str,
    *,
    stream: bool,
    exclude_input_in_output: bool | None,
    sampling_parameters: str,
    max_prompt_bytes: int = DEFAULT_MAX_PROMPT_BYTES,
    triton_timeout_us: int = 0,
) -> GenerationRequest:
    """Check one request.

    As in Triton's vLLM backend (``src/utils/request.py``), the answer of a request that does not stream
    starts with the prompt unless ``exclude_input_in_output`` is true, that of one that streams never does,
    and asking for it there is an error. Raises RequestError (INVALID_ARGUMENT) with one sentence.
    """
    if not prompt:
        raise invalid("text_input: expected a prompt, got an empty text")
    size = len(prompt.encode("utf-8", "surrogatepass"))
    if size > max_prompt_bytes:
        raise invalid(f"text_input: expected at most {max_prompt_bytes} bytes, got {size}")
    if stream and exclude_input_in_output is False:
        raise invalid("exclude_input_in_output: false is not allowed when streaming")
    return GenerationRequest(
        prompt=prompt,
        stream=stream,
        prepend_prompt=not stream and not exclude_input_in_output,
        sampling=parse_sampling(sampling_parameters),
        terms=parse_terms(sampling_parameters, triton_timeout_us),
    )
