"""The client of an engine in this process, without vLLM: the thread that drives it, its flags, the model's name."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from autointerp.clients import make_client
from autointerp.clients.engine import EngineGone, EngineThread
from autointerp.clients.engine_arguments import engine_arguments, model_name
from autointerp.clients.vllm import VllmClient
from autointerp.config import ClientConfig
from autointerp.records import Completion, Message, Request, Sampling, TokenLogprob, Usage
from sae.errors import InputError

QUESTION = Request("t", (Message("user", "x"),), sampling=Sampling(top_logprobs=2))


@dataclass
class Output:
    """A finished request, or one that goes on."""

    request_id: str
    finished: bool
    prompt: Any = None


@dataclass
class FakeEngine:
    """Finishes each request after `n_steps`; refuses "bad", and breaks down at "fatal"."""

    n_steps: int = 2
    waiting: dict[str, tuple[Any, int]] = field(default_factory=dict)
    together: list[int] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        if prompt == "bad":
            raise ValueError("a bad prompt")
        self.waiting[request_id] = (prompt, 0)

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for name in request_ids:
            del self.waiting[name]

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Output]:
        self.held.wait(10)
        self.together.append(len(self.waiting))
        outputs = []
        for name, (prompt, done) in list(self.waiting.items()):
            if prompt == "fatal":
                raise RuntimeError("out of memory")
            self.waiting[name] = (prompt, done + 1)
            outputs.append(Output(name, done + 1 == self.n_steps, prompt))
            if outputs[-1].finished:
                del self.waiting[name]
        return outputs


def driven(engine: FakeEngine, stopped: list[Any]) -> EngineThread:
    return EngineThread(lambda: engine, stopped.append)


async def asked(thread: EngineThread, *prompts: str) -> list[Any]:
    await thread.started()
    return [output.prompt for output in await thread.answered(lambda _: [(prompt, None) for prompt in prompts])]


def test_requests_in_flight_share_each_step_and_keep_their_order() -> None:
    engine, stopped = FakeEngine(), list[Any]()
    thread = driven(engine, stopped)

    async def several() -> list[list[Any]]:
        await thread.started()
        tasks = [asyncio.ensure_future(asked(thread, f"a{i}", f"b{i}")) for i in range(10)]
        await asyncio.sleep(0.05)
        engine.held.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(several()) == [[f"a{i}", f"b{i}"] for i in range(10)]
    assert max(engine.together) == 20 and len(engine.together) <= 4
    # The engine is the same in the next event loop, and is released once.
    assert asyncio.run(asked(thread, "later")) == ["later"]
    thread.stop()
    assert stopped == [engine]


def test_a_refused_prompt_fails_alone_and_takes_its_companions_out_of_the_engine() -> None:
    engine = FakeEngine()
    engine.held.set()
    thread = driven(engine, [])

    async def both() -> list[Any]:
        return await asyncio.gather(asked(thread, "good", "bad"), asked(thread, "fine"), return_exceptions=True)

    failed, fine = asyncio.run(both())
    assert isinstance(failed, ValueError) and fine == ["fine"]
    assert len(engine.aborted) == 1 and not engine.waiting
    thread.stop()


def test_a_cancelled_request_is_aborted() -> None:
    engine = FakeEngine(n_steps=10**9)
    engine.held.set()
    thread = driven(engine, [])

    async def impatient() -> None:
        await thread.started()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await asked(thread, "never", "ever")

    asyncio.run(impatient())
    engine.n_steps = 1
    assert asyncio.run(asked(thread, "after")) == ["after"]
    assert len(engine.aborted) == 2
    thread.stop()


def test_an_engine_that_breaks_down_fails_what_is_in_flight_and_all_that_comes() -> None:
    engine, stopped = FakeEngine(), list[Any]()
    engine.held.set()
    thread = driven(engine, stopped)
    for prompt in ("fatal", "next"):
        with pytest.raises(EngineGone, match="out of memory"):
            asyncio.run(asked(thread, prompt))
    thread.stop()
    assert stopped == [engine]


def test_what_keeps_an_engine_from_starting_reaches_all_who_wait() -> None:
    def start() -> FakeEngine:
        raise InputError("no memory")

    thread = EngineThread(start, print)

    async def several() -> list[Any]:
        return await asyncio.gather(asked(thread, "a"), asked(thread, "b"), return_exceptions=True)

    assert [str(found) for found in asyncio.run(several())] == ["no memory"] * 2
    thread.stop()


def test_stopping_while_the_engine_starts_ends_the_thread() -> None:
    begun = threading.Event()

    def start() -> FakeEngine:
        begun.set()
        while True:
            threading.Event().wait(0.01)

    thread = EngineThread(start, print)

    async def impatient() -> None:
        waiting = asyncio.ensure_future(thread.started())
        await asyncio.to_thread(begun.wait)
        waiting.cancel()

    asyncio.run(impatient())
    thread.stop()
    assert not [found for found in threading.enumerate() if found.name == "engine"]


PARENT = """
import asyncio, multiprocessing, time
from autointerp.clients.engine import EngineThread
from test_vllm_client import FakeEngine

def start():
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    print(child.pid, flush=True)
    return FakeEngine()

if __name__ == "__main__":
    thread = EngineThread(start, print)
    asyncio.run(thread.started())
    print("ready", flush=True)
    time.sleep(60)
"""


def test_processes_of_the_engine_end_when_this_one_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        child, ready = int(process.stdout.readline()), process.stdout.readline()
        os.kill(child, 0)
        process.kill()
    assert ready == "ready\n"
    for _ in range(1000):
        if not alive(child):
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has asked about any more has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@dataclass
class Place:
    """A token's log probability, as vLLM gives it."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass
class Answer:
    """What vLLM has written."""

    text: str = "<think>no</think>[1]"
    finish_reason: str | None = "length"
    token_ids: tuple[int, ...] = (7,)
    logprobs: Any = field(
        default_factory=lambda: [{7: Place(-3.0, 3, "1"), 8: Place(-0.1, 1, "0"), 9: Place(-2.0, 2, "\ud83d")}]
    )


class Tokenizer:
    """Has a chat template, or none."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template


def test_the_answer_has_the_form_that_the_chat_client_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thread:
        async def started(self) -> None:
            pass

        async def answered(self, _: Any) -> list[Any]:
            return [type("Output", (), {"outputs": [Answer()], "prompt_token_ids": [1, 2, 3]})()]

    monkeypatch.setattr("autointerp.clients.vllm.engine_thread", lambda *_: Thread())
    # The chosen token is not among the two likeliest, and half a character pair could not be written to a file.
    places = (TokenLogprob("1", -3.0, (("0", -0.1), ("?", -2.0))),)
    expected = Completion("[1]", "m", "length", Usage(3, 1), places)
    assert asyncio.run(VllmClient("m", {}).complete(QUESTION)) == expected


def test_a_model_without_a_chat_template_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    engine.get_tokenizer = lambda: Tokenizer(None)  # type: ignore[attr-defined]
    thread = driven(engine, [])
    monkeypatch.setattr("autointerp.clients.vllm.engine_thread", lambda *_: thread)
    with pytest.raises(InputError, match="base has no chat template"):
        asyncio.run(VllmClient("base", {}).complete(QUESTION))
    thread.stop()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("max_model_len=4096", "quantization=fp8"), {"max_model_len": 4096, "quantization": "fp8"}),
        (("--enforce-eager=True", "seed=null"), {"enforce_eager": True, "seed": None}),
        (('{"a": 1, "b": {"c": 2}}', "dtype=auto"), {"a": 1, "b": {"c": 2}, "dtype": "auto"}),
        (('rope={"a": [1, 2]}',), {"rope": {"a": [1, 2]}}),
        ((), {}),
    ],
)
def test_engine_arguments_are_json_or_pairs(given: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert engine_arguments(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("max_model_len", "neither a JSON object nor name=value"),
        ("=3", "neither"),
        ('{"a": ', "is no JSON object"),
        ("model=x", "use --model"),
        ("tensor-parallel-size=2", "use --tensor-parallel-size"),
    ],
)
def test_engine_arguments_that_are_none_are_one_line(given: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as error:
        engine_arguments((given,))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "org/m"),
        ({"tensor_parallel_size": 2, "max_model_len": 10, "enforce_eager": True}, "org/m"),
        ({"quantization": "fp8", "revision": "x"}, 'org/m (quantization="fp8", revision="x")'),
        ({"quantization": "fp8", "served_model_name": "mine"}, "mine"),
        ({"served_model_name": ["mine", "other"]}, "mine"),
    ],
)
def test_what_changes_the_answers_is_part_of_the_name(arguments: dict[str, Any], expected: str) -> None:
    assert model_name("org/m", arguments) == expected == VllmClient("org/m", arguments).model


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ClientConfig("vllm"), "--model"),
        (ClientConfig("vllm", model="m", base_url="http://x"), "leave out --base-url"),
        (ClientConfig("vllm", model="m", batch=True), "--batch is OpenAI's"),
        (ClientConfig("vllm", model="m", tensor_parallel_size=0), "--tensor-parallel-size must be at least 1"),
        (ClientConfig("vllm", model="m", engine_args=("x",)), "neither"),
        (ClientConfig("openai", model="m", base_url="http://x", engine_args=("a=1",)), "leave out --engine-args"),
        (ClientConfig("openai", model="m", base_url="http://x", tensor_parallel_size=2), "--tensor-parallel-size"),
        (ClientConfig(tensor_parallel_size=2), "leave out --tensor-parallel-size"),
        (ClientConfig(engine_args=("a=1",)), "leave out --engine-args"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(config: ClientConfig, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as error:
        make_client(config)
    assert "\n" not in str(error.value)


def test_without_vllm_the_line_names_the_extra_and_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError) as error:
        make_client(ClientConfig("vllm", model="org/m"))
    assert 'pip install "autointerp-nulls[vllm]"' in str(error.value) and "`vllm serve org/m`" in str(error.value)
    # An estimate needs no engine.
    assert make_client(ClientConfig("vllm", model="org/m", estimate=True)).model == "org/m"


def test_the_size_is_an_engine_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    client: Any = make_client(ClientConfig("vllm", model="m", tensor_parallel_size=2, engine_args=("seed=1",)))
    assert client.arguments == {"tensor_parallel_size": 2, "seed": 1} and client.model == "m (seed=1)"
