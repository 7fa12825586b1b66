"""Any server that speaks the chat-completions protocol: OpenAI, vLLM, llama.cpp, Ollama, a gateway."""

from __future__ import annotations

import os
import re
from typing import Any

import openai

from autointerp.config import ClientConfig
from autointerp.prompting import quoted
from autointerp.records import Completion, Request, Usage
from sae.errors import InputError

OWN_ADDRESS = "api.openai.com"


class OpenAIClient:
    """Answers by AsyncOpenAI, which retries rate limits, time-outs and server errors by itself."""

    graded = False

    def __init__(
        self, model: str, base_url: str | None, key: str, max_retries: int = 5, timeout: float = 600.0
    ) -> None:
        self.model = model
        self.base_url = base_url
        self.max_retries = max_retries
        self.timeout = timeout
        self._key = key
        self._connection: openai.AsyncOpenAI | None = None

    @classmethod
    def from_config(cls, config: ClientConfig) -> OpenAIClient:
        """The client that the flags describe, with the key from the environment.

        Raises:
            InputError: no model, no key for OpenAI's own server, or an address that is none.
        """
        if not config.model:
            raise InputError("--client openai needs --model, the name under which the server knows the model")
        base_url = config.base_url or os.environ.get("OPENAI_BASE_URL") or None
        if base_url and not re.match(r"https?://[^/\s]+", base_url):
            raise InputError(f"--base-url {base_url} is no address; expected something like http://127.0.0.1:8000/v1")
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key and not base_url:
            raise InputError("no key for OpenAI: set OPENAI_API_KEY, or name a server of your own by --base-url")
        # The library would quote such a key, line break and all, in the error of every request.
        if not (key.isascii() and key.isprintable()):
            raise InputError("OPENAI_API_KEY has a line break or a letter beyond ASCII, as no key has; set it again")
        # A server of one's own often wants no key, but the library insists on one.
        return cls(config.model, base_url, key or "none", config.max_retries, config.timeout)

    async def complete(self, request: Request) -> Completion:
        """The server's answer, or a completion whose `error` says in one line why there is none."""
        if self._connection is None:
            # Made here and not before, because its connections belong to the running event loop.
            self._connection = openai.AsyncOpenAI(
                api_key=self._key, base_url=self.base_url, max_retries=self.max_retries, timeout=self.timeout
            )
        try:
            # The same request as chat.completions.create sends, without walking through all messages to check types,
            # which would take three times as long as the rest.
            answer = await self._connection.post("/chat/completions", cast_to=object, body=self._arguments(request))
        except (openai.OpenAIError, ValueError) as error:
            return self._failure(error)
        try:
            return self._completion(answer)
        except (AttributeError, IndexError, KeyError, TypeError):
            # Servers also send errors, or half of the protocol, under status 200.
            found = self._without_key(quoted(answer)[:300])
            return Completion("", self.model, "error", error=f"the server sent no chat completion but {found}")

    async def close(self) -> None:
        """Release connections; the next request opens new ones."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    def _arguments(self, request: Request) -> dict[str, Any]:
        own = self.base_url is None or OWN_ADDRESS in self.base_url
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            "temperature": request.sampling.temperature,
            # OpenAI's newer models refuse the old name; most other servers know only the old one.
            "max_completion_tokens" if own else "max_tokens": request.sampling.max_tokens,
        }
        if request.sampling.seed is not None:
            arguments["seed"] = request.sampling.seed
        return arguments

    def _completion(self, answer: Any) -> Completion:
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        message = choice["message"]
        content = message.get("content")
        return Completion(
            text=without_thoughts(content if isinstance(content, str) else ""),
            model=self.model,
            finish_reason="refusal" if message.get("refusal") else (choice.get("finish_reason") or "stop"),
            usage=Usage(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)),
        )

    def _failure(self, error: Exception) -> Completion:
        kinds: tuple[tuple[type[Exception], str], ...] = (
            (openai.APITimeoutError, "timeout"),
            (openai.APIConnectionError, "unreachable"),
            (openai.AuthenticationError, "unauthorised"),
            (openai.PermissionDeniedError, "unauthorised"),
            (openai.NotFoundError, "not_found"),
        )
        kind = next((name for cls, name in kinds if isinstance(error, cls)), "error")
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if kind == "unreachable":
            cause = str(error.__cause__ or "") or type(error.__cause__ or error).__name__
            reason = f"no connection to {self.base_url or OWN_ADDRESS} ({cause})"
        return Completion("", self.model, kind, error=self._without_key(_encodable(reason)))

    def _without_key(self, text: str) -> str:
        # Some servers quote the key that they refuse.
        return text.replace(self._key, "[key]") if len(self._key) > 4 else text


def without_thoughts(text: str) -> str:
    """The answer without leading <think> blocks; empty if the block never ends.

    Some chat templates open the block in the prompt, so that the answer has only its end.
    """
    text = _encodable(text)
    if not text.lstrip().startswith("<think>") and "</think>" not in text:
        return text
    _, end, answer = text.rpartition("</think>")
    return answer.lstrip() if end else ""


def _encodable(text: str) -> str:
    """Half of a character pair, which some servers send where an answer is cut off, could not be written to a file."""
    return text.encode("utf-8", "replace").decode()
