"""Clients: who answers requests. Each is imported only when it is asked for."""

from __future__ import annotations

from autointerp.config import OFFLINE, ClientConfig
from autointerp.records import LLMClient, Sampling
from sae.errors import InputError


def make_client(config: ClientConfig) -> LLMClient:
    """The client that the flags describe.

    Raises:
        InputError: the flags do not fit together, a key is missing, or the client cannot run here.
    """
    if config.concurrency < 1 or config.max_tokens < 1 or config.max_retries < 0 or config.timeout <= 0:
        raise InputError("--concurrency, --max-tokens and --timeout must be above zero and --max-retries not below it")
    if not 0 <= config.temperature <= 2:
        raise InputError(f"--temperature must be from 0 to 2, found {config.temperature}")
    if config.client == OFFLINE:
        if config.model or config.base_url:
            raise InputError("--client offline asks no model; leave out --model and --base-url, or use --client openai")
        from autointerp.clients.offline import OfflineClient

        return OfflineClient()
    if config.client == "vllm":
        raise InputError(
            f"--client vllm cannot run inside this process yet; start `vllm serve {config.model or 'MODEL'}` and use "
            "--client openai --base-url http://127.0.0.1:8000/v1"
        )
    from autointerp.clients.openai_compatible import OpenAIClient

    return OpenAIClient.from_config(config)


def sampling_of(config: ClientConfig) -> Sampling:
    """How the model is to sample."""
    return Sampling(config.temperature, config.max_tokens)
