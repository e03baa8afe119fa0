"""The canary, /health and our endpoints, with a stand-in for vLLM's engine."""

from __future__ import annotations

import asyncio
import logging
import math
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from test_canary_judge import Model, deaf, honest, parrot, stuck

pytest.importorskip("vllm", reason="vLLM is not installed")
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from gb10.vllm_plugin.refusal import Refused
from gb10.vllm_plugin.server import endpoints, health, settings
from gb10.vllm_plugin.server.canary import TOKENS, Canary, Sung, Unasked
from gb10.vllm_plugin.server.endpoints import Endpoints
from gb10.vllm_plugin.server.health import Health, watch


class Words:
    """A tokenizer with a token for each word."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [2 + len(word) % 20 for word in text.split()]


class Engine:
    """What the canary asks of AsyncLLM. ``model`` may be changed while it runs."""

    def __init__(self, model: Model = honest, tokenizer: Any = None, **config: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.asked: list[tuple[list[int], Any]] = []
        self.busy = 0
        self.resting = self.dead = False
        self.refuses: Exception | None = None
        self.waits = 0.0
        self.hangs = False
        self.steps: list[Any] = []
        self.output_processor = SimpleNamespace(update_scheduler_stats=self.steps.append)
        given: dict[str, Any] = {
            "max_logprobs": 20,
            "logprobs_mode": "raw_logprobs",
            "max_model_len": 4096,
            "hf_text_config": SimpleNamespace(eos_token_id=[0, 23]),
            "is_encoder_decoder": False,
            "get_vocab_size": lambda: 24,
            "try_get_generation_config": dict,
        }
        self.model_config = SimpleNamespace(**(given | config))
        self.vllm_config = SimpleNamespace(
            model_config=self.model_config, load_config=SimpleNamespace(load_format="auto")
        )
        self.tasks: tuple[str, ...] = ("generate",)

    async def generate(self, prompt: Any, parameters: Any, name: str) -> AsyncIterator[Any]:
        assert name.startswith("gb10-canary-")
        if self.dead:
            raise EngineDeadError
        if self.refuses is not None:
            raise self.refuses
        await self.turn()
        await asyncio.sleep(self.waits)
        text = list(prompt["prompt_token_ids"])
        self.asked.append((text, parameters))
        tokens: list[int] = []
        numbers: list[dict[int, Any]] = []
        for place in range(parameters.max_tokens):
            found = self.model([*text, *tokens], place > 0)
            likely = sorted(found.items(), key=lambda one: -one[1])[: max(parameters.logprobs, 1)]
            tokens.append(likely[0][0])
            numbers.append({token: SimpleNamespace(logprob=value) for token, value in likely})
        yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, logprobs=numbers)])

    async def check_health(self) -> None:
        if self.dead:
            raise EngineDeadError

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return self.tasks

    def get_num_unfinished_requests(self) -> int:
        return self.busy

    async def turn(self) -> None:
        """As long as the engine hangs, nothing comes back from it."""
        if self.hangs:
            await asyncio.Event().wait()

    async def is_paused(self) -> bool:
        await self.turn()
        return self.resting

    async def is_sleeping(self) -> bool:
        return False


def sing(engine: Engine) -> Sung:
    return asyncio.run(Canary(engine).sing())


def nothing(_text: list[int], _: bool) -> dict[int, float]:
    return dict.fromkeys(range(24), math.nan)


def test_what_is_asked() -> None:
    """Two texts with one end, one with another, then two of them again with what was written."""
    engine = Engine(tokenizer=Words())
    sung = sing(engine)
    assert (sung.fault, sung.tokens) == (None, 3 * TOKENS + 2)
    assert sung.apart is not None and sung.apart < 0.01
    first, second, third, *again = [text for text, _ in engine.asked]
    same = next(n for n in range(1, 100) if first[-n:] != second[-n:]) - 1
    assert 5 < same < len(first) - 20
    assert first[-1] != third[-1]
    assert len(first) == len(second)
    assert [len(text) for text in again] == [len(first) + TOKENS - 1, len(third) + TOKENS - 1]
    assert [again[0][: len(first)], again[1][: len(third)]] == [first, third]
    for _, parameters in engine.asked:
        assert parameters.skip_reading_prefix_cache and parameters.ignore_eos
        assert (parameters.temperature, parameters.logprobs) == (0, 20)


@pytest.mark.parametrize(
    ("model", "said"),
    [(nothing, "not a number"), (deaf, "to different texts"), (stuck, "after every text"), (parrot, None)],
)
@pytest.mark.parametrize("tokenizer", [None, Words()])
def test_what_is_found(model: Model, said: str | None, tokenizer: Any) -> None:
    found = sing(Engine(model, tokenizer)).fault
    assert found is None if said is None else said in str(found)


def test_made_up_texts_end_alike() -> None:
    engine = Engine(get_vocab_size=lambda: 5000)
    sing(engine)
    first, second, third, *_ = [text for text, _ in engine.asked]
    half = len(first) // 2
    assert first[half:] == second[half:] and first[:half] != second[:half] and third[-1] != first[-1]
    assert set(first + second + third) <= set(range(300, 3300))


@pytest.mark.parametrize("room", [3, 7, 64])
def test_a_short_context(room: int) -> None:
    engine = Engine(max_model_len=room)
    assert sing(engine).fault is None
    assert max(len(text) + parameters.max_tokens for text, parameters in engine.asked) <= room


def test_no_room_at_all() -> None:
    with pytest.raises(Unasked, match="a context of 2 tokens"):
        sing(Engine(max_model_len=2))


def test_what_vllm_may_not_say() -> None:
    """--max-logprobs 0: the token's own number alone; --logprobs-mode: no probabilities."""
    alone = sing(Engine(max_logprobs=0))
    assert (alone.fault, alone.apart) == (None, None)
    assert "not a number" in str(sing(Engine(nothing, max_logprobs=0)).fault)
    assert sing(Engine(max_logprobs=-1)).fault is None
    found = sing(Engine(logprobs_mode="raw_logits"))
    assert (found.fault, found.apart) == (None, None)


def test_refused_requests_say_nothing_of_the_model() -> None:
    engine = Engine()
    engine.refuses = VLLMValidationError("no such thing")
    with pytest.raises(Unasked, match="VLLMValidationError: no such thing"):
        sing(engine)


def start(engine: Engine) -> Endpoints:
    """Our plug-in after vLLM has called it, without what it goes on to do."""

    async def run() -> Endpoints:
        made, state = Endpoints(), SimpleNamespace()
        await made.init_state(engine, state, Namespace())  # type: ignore[arg-type]
        if (task := getattr(state, "gb10_watch", None)) is not None:
            task.cancel()
        made.watches = task is not None  # type: ignore[attr-defined]
        return made

    return asyncio.run(run())


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What our logger says; nothing of the canary's is set."""
    for name in (settings.CANARY_NAME, settings.INTERVAL_NAME):
        monkeypatch.delenv(name, raising=False)
    # vLLM's own logger does not hand on what it is given.
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def test_a_start(said: pytest.LogCaptureFixture) -> None:
    assert start(Engine()).watches  # type: ignore[attr-defined]
    assert "gb10: canary: 14 tokens in 0.0 s" in said.text and "the model answers" in said.text


def test_a_start_is_refused(said: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Refused):
        start(Engine(nothing))
    assert "gb10: refused: the model's answer is not a number (nan); its weights" in said.text
    assert "GB10_CANARY=report serves all the same" in said.text


@pytest.mark.parametrize(
    ("variables", "load_format", "asked"),
    [
        ({settings.CANARY_NAME: "report"}, "auto", 3),
        ({settings.CANARY_NAME: "off"}, "auto", 0),
        ({}, "dummy", 3),
    ],
)
def test_what_is_not_refused(
    said: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    load_format: str,
    asked: int,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    engine = Engine(nothing)
    engine.vllm_config.load_config.load_format = load_format
    made = start(engine)
    # That it still answers is watched all the same.
    assert made.watches == (asked > 0) and made.health.reason is None  # type: ignore[attr-defined]
    assert len(engine.asked) >= asked
    assert ("is not a number" in said.text) == (asked > 0)


@pytest.mark.parametrize(
    ("tasks", "config"), [(("embed",), {}), (("generate",), {"is_encoder_decoder": True})]
)
def test_models_that_continue_no_texts(
    said: pytest.LogCaptureFixture, tasks: tuple[str, ...], config: dict[str, Any]
) -> None:
    engine = Engine(**config)
    engine.tasks = tasks
    assert start(engine).watches  # type: ignore[attr-defined]
    assert engine.asked == [] and "canary: left out: this model does not" in said.text


def test_no_more_canaries(said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.INTERVAL_NAME, "0")
    assert not start(Engine()).watches  # type: ignore[attr-defined]
    monkeypatch.setenv(settings.INTERVAL_NAME, "soon")
    with pytest.raises(Exception, match="GB10_CANARY_INTERVAL='soon' is not a number of seconds"):
        start(Engine())
    monkeypatch.setenv(settings.INTERVAL_NAME, "1e9999")
    with pytest.raises(Exception, match="GB10_CANARY_INTERVAL='1e9999' is not a number of seconds"):
        start(Engine())
    monkeypatch.setenv(settings.CANARY_NAME, "yes")
    with pytest.raises(Exception, match="GB10_CANARY='yes' is none of: refuse, report, off"):
        start(Engine())


def test_a_canary_that_vllm_refuses_leaves_the_watch(said: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    engine.refuses = VLLMValidationError("no such thing")
    assert start(engine).watches  # type: ignore[attr-defined]
    assert "canary: left out: VLLMValidationError: no such thing" in said.text


@pytest.mark.parametrize("hangs", [True, False])
def test_the_first_canary_has_a_limit(
    said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(endpoints, "FIRST_LIMIT", 0.2 if hangs else 30)
    engine = Engine()
    engine.hangs = hangs
    if not hangs:
        assert start(engine).health.reason is None
        return
    with pytest.raises(Refused):
        start(engine)
    assert "gb10: refused: no answer within 0 s to the first requests" in said.text
    assert "hangs, or this machine is too slow" in said.text
    monkeypatch.setenv(settings.CANARY_NAME, "report")
    assert start(engine).watches  # type: ignore[attr-defined]


def watched(
    engine: Engine, then: Callable[[], Awaitable[None]], interval: float = 0.002, sings: bool = True
) -> list[str]:
    """What a watch has found when ``then`` is over."""

    async def run() -> list[str]:
        found: list[str] = []
        task = asyncio.create_task(watch(engine, Canary(engine) if sings else None, interval, found.append))
        await then()
        assert not task.done() or task.exception() is None
        task.cancel()
        return found

    return asyncio.run(run())


async def until(done: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.001)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Canaries may take all of the time."""
    monkeypatch.setattr(health, "_SHARE", 0)


@pytest.mark.usefixtures("quick")
def test_a_model_that_breaks_later_is_found() -> None:
    engine = Engine()

    async def then() -> None:
        await until(lambda: len(engine.asked) > 20)
        engine.model = nothing
        asked = len(engine.asked)
        await until(lambda: len(engine.asked) > asked)
        await asyncio.sleep(0.05)
        # It was found, and nothing is asked any more.
        assert len(engine.asked) <= asked + 2 * 5

    assert watched(engine, then) == ["the model's answer is not a number (nan)"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("asked", ["is_paused", "generate", "get_num_unfinished_requests"])
def test_a_watch_does_not_end_in_silence(
    said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """What the engine is asked fails, and it is not dead."""
    engine = Engine()
    failed: list[str] = []

    async def forever() -> None:
        def fail(*_: Any) -> Any:
            failed.append(asked)
            raise RuntimeError("no\nsuch call")

        monkeypatch.setattr(engine, asked, fail)
        await until(lambda: len(failed) >= health.TROUBLES)
        await asyncio.sleep(0.05)

    reason = "vLLM's engine cannot be watched: RuntimeError: no such call"
    assert watched(engine, forever) == [reason]
    assert said.text.count("each interval failed: RuntimeError: no such call") == health.TROUBLES - 1


@pytest.mark.usefixtures("quick")
def test_a_watch_goes_on_after_failures_that_pass(said: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    failed: list[int] = []

    async def then() -> None:
        async def now_and_then() -> bool:
            failed.append(1)
            if len(failed) % health.TROUBLES:
                raise RuntimeError("not now")
            return False

        engine.is_paused = now_and_then  # type: ignore[method-assign]
        await until(lambda: len(failed) > 4 * health.TROUBLES)
        engine.model = nothing
        await asyncio.sleep(0.1)

    assert watched(engine, then) == ["the model's answer is not a number (nan)"]
    assert "each interval failed: RuntimeError: not now" in said.text


def test_a_watch_that_cannot_begin() -> None:
    engine = Engine()
    del engine.output_processor

    async def then() -> None:
        await asyncio.sleep(0.05)

    (reason,) = watched(engine, then)
    assert reason.startswith("vLLM's engine cannot be watched: AttributeError: ")


@pytest.mark.usefixtures("quick")
def test_a_busy_server_is_asked_seldom_and_a_sleeping_one_never() -> None:
    engine = Engine()

    async def ticks(number: int) -> None:
        before = list(counted)
        await until(lambda: len(counted) >= len(before) + number)

    counted: list[int] = []
    count = engine.get_num_unfinished_requests

    def counting() -> int:
        counted.append(1)
        return count()

    engine.get_num_unfinished_requests = counting  # type: ignore[method-assign]

    async def busy() -> None:
        engine.busy = 3
        await ticks(health.OVERDUE - 1)
        assert engine.asked == []
        await ticks(3)
        assert len(engine.asked) >= 3

    async def resting() -> None:
        engine.resting, engine.asked = True, []
        await ticks(2 * health.OVERDUE)
        assert engine.asked == []

    assert watched(engine, busy) == []
    assert watched(engine, resting) == []


def test_a_canary_takes_a_hundredth_of_the_time() -> None:
    engine = Engine()
    engine.waits = 0.01

    async def then() -> None:
        await until(lambda: len(engine.asked) >= 5)
        await asyncio.sleep(0.3)

    assert watched(engine, then) == []
    assert len(engine.asked) == 5


@pytest.mark.usefixtures("quick")
def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LIMIT", 0.2)
    engine = Engine()
    engine.waits = 60

    async def then() -> None:
        await asyncio.sleep(0.8)

    assert watched(engine, then) == ["no answer within 0 s to a request of a few tokens"]
    engine.resting = True
    assert watched(engine, then) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("sings", [True, False])
@pytest.mark.parametrize("busy", [0, 1])
def test_an_engine_that_hangs(monkeypatch: pytest.MonkeyPatch, busy: int, sings: bool) -> None:
    """Not even whether it rests comes back: idle or for ever busy, with canaries or without."""
    monkeypatch.setattr(health, "LIMIT", 0.3)
    monkeypatch.setattr(health, "BUSY_LIMIT", 0.4)
    engine = Engine()
    engine.busy = busy

    async def then() -> None:
        await asyncio.sleep(0.1)
        engine.hangs = True
        await asyncio.sleep(1)

    (said,) = watched(engine, then, sings=sings)
    assert "given nothing for 0 s" in said or "to a request" in said

    async def lives() -> None:
        engine.hangs = False
        await asyncio.sleep(1)

    assert watched(engine, lives, sings=sings) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("steps", [True, False])
@pytest.mark.parametrize("answers", [True, False])
def test_a_busy_engine_is_well_as_long_as_it_steps(
    monkeypatch: pytest.MonkeyPatch, steps: bool, answers: bool
) -> None:
    """A canary behind a long queue, and a question behind a long step, wait while others get tokens."""
    monkeypatch.setattr(health, "BUSY_LIMIT", 0.4)
    engine = Engine()
    engine.busy = 7
    engine.waits = 60
    engine.hangs = not answers

    async def then() -> None:
        for number in range(60):
            await asyncio.sleep(0.02)
            if steps:
                engine.output_processor.update_scheduler_stats(number)

    said = watched(engine, then)
    assert len(said) == (not steps)
    assert engine.steps == (list(range(60)) if steps else [])


def test_vllm_tells_of_each_step() -> None:
    """Its own output handler, with what an engine sends after a step that brought no token."""
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor

    async def run() -> list[bool]:
        sent: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        client: Any = SimpleNamespace(
            output_handler=None,
            engine_core=SimpleNamespace(get_output_async=sent.get),
            output_processor=OutputProcessor(None, log_stats=False),
            log_stats=False,
            logger_manager=None,
            renderer=SimpleNamespace(mm_processor_cache=None),
        )
        AsyncLLM._run_output_handler(client)
        life = health.Life(client)
        found = []
        for steps in (True, False):
            asked = asyncio.create_task(life.within(0.5, asyncio.sleep(60)))
            for _ in range(15):
                await asyncio.sleep(0.1)
                if steps:
                    sent.put_nowait(EngineCoreOutputs())
            found.append(asked.done() and isinstance(asked.exception(), TimeoutError))
            asked.cancel()
        client.output_handler.cancel()
        return found

    assert asyncio.run(run()) == [False, True]


@pytest.mark.usefixtures("quick")
def test_the_end_of_the_engine_is_vllms_to_tell() -> None:
    engine = Engine()
    engine.dead = True

    async def then() -> None:
        await asyncio.sleep(0.05)

    assert watched(engine, then) == []


@pytest.fixture
def served() -> Iterator[tuple[TestClient, Engine, Health]]:
    """An application with vLLM's own /health and /ping, and ours as vLLM attaches it."""
    from vllm.entrypoints.serve.instrumentator.health import health as stock
    from vllm.plugins import endpoint_plugins
    from vllm.plugins.endpoint_plugins.interface import attach_endpoint_plugins

    assert endpoint_plugins is not None
    engine, made, app = Engine(), Endpoints(), FastAPI()
    app.state.engine_client = engine
    app.get("/health")(stock)
    app.get("/ping")(stock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vllm.plugins.load_endpoint_plugins", lambda _: [made])
        patch.setattr(endpoints, "_report", lambda: {"planned": []})
        attach_endpoint_plugins(app, ("generate",))
        made.health.guard(engine)
        yield TestClient(app), engine, made.health


Served = tuple[TestClient, Engine, Health]


def test_health_says_why(served: Served) -> None:
    client, _, state = served
    assert (client.get("/health").status_code, client.get("/health").content) == (200, b"")
    assert client.get("/ping").status_code == 200
    state.fail("the model's answer is not a number (nan)")
    state.fail("something else")
    answer = client.get("/health")
    assert answer.status_code == 503
    assert answer.json() == {"error": "the model's answer is not a number (nan)"}
    # What vLLM has for SageMaker asks the same.
    assert client.get("/ping").status_code == 503
    assert len([route for route in client.app.routes if route.path == "/health"]) == 1  # type: ignore[attr-defined]


def test_a_dead_engine(served: Served) -> None:
    client, engine, _ = served
    engine.dead = True
    assert client.get("/health").json() == {"error": "vLLM's engine is dead"}
    assert client.get("/health").status_code == client.get("/ping").status_code == 503


def test_routing_is_answered(served: Served) -> None:
    assert served[0].get("/v1/gb10/routing").json() == {"planned": []}


def test_ours_is_loaded_without_a_word_of_vllm_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.plugins

    from gb10.vllm_plugin.server.install import install

    monkeypatch.setattr(vllm.plugins, "load_endpoint_plugins", vllm.plugins.load_endpoint_plugins)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert vllm.plugins.load_endpoint_plugins(("generate",)) == []
    install()
    (made,) = vllm.plugins.load_endpoint_plugins(("generate",))
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    assert isinstance(made, EndpointPlugin)
