"""A tool call in each model's own format, through the parsers that its recipe names, as vLLM's server does.

A wrong parser is no error anywhere: the server answers 200 with the call as plain text. The texts are written
here by the formats that vLLM's parsers document (vllm/parser/qwen3.py, hermes_tool_parser.py, harmony.py);
the models' chat templates are not here.
"""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from gb10 import recipes

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

from openai_harmony import HarmonyEncodingName, load_harmony_encoding  # type: ignore[import-untyped]
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager

if TYPE_CHECKING:
    from vllm.parser.abstract_parser import Parser

THOUGHT = "The user asks for the weather."
ARGUMENTS = {"city": "Bern", "days": 3}

XML = """<tool_call>
<function=get_weather>
<parameter=city>
Bern
</parameter>
<parameter=days>
3
</parameter>
</function>
</tool_call>"""
JSON = """<tool_call>
{"name": "get_weather", "arguments": {"city": "Bern", "days": 3}}
</tool_call>"""
HARMONY = (
    f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.get_weather <|constrain|>json<|message|>{"city": "Bern", "days": 3}<|call|>'
)
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_start|>", "<|im_end|>")
THINKING = f"{THOUGHT}\n</think>\n\n"

SAID = {
    "gpt-oss-120b": HARMONY,
    "nemotron-3.5-lightning": THINKING + XML,
    "qwen3-coder-next": XML,
    "qwen3-next-80b-a3b": JSON,
    "qwen3.6-35b-a3b": THINKING + XML,
    "qwen3.8-27b": THINKING + XML,
    "qwen3.8-flash-next": THINKING + XML,
}
"""What each model says. Those that think are asked with an open <think> at the end of the prompt."""

WRONG = {XML: "hermes", JSON: "qwen3_coder"}
"""A parser of another model's format, by the format."""


@dataclass
class Heard:
    """What a client gets."""

    reasoning: str = ""
    content: str = ""
    calls: dict[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def tools(self) -> list[tuple[str, Any]]:
        """(name, arguments) of each call."""
        return [(name, json.loads(arguments)) for name, arguments in self.calls.values()]


def _request() -> Any:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    }
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    messages = [{"role": "user", "content": "What is the weather in Bern?"}]
    return ChatCompletionRequest(model="m", messages=messages, tools=[tool], tool_choice="auto")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A token for each byte and for each mark, so that a stream comes in the smallest parts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(MARKS))
    return PreTrainedTokenizerFast(tokenizer_object=made)


@dataclass
class Model:
    """What stands for a model: its parser, and what it says as text and tokens."""

    parser: "type[Parser]"
    tokenizer: Any
    prompt: list[int]
    parts: list[tuple[str, list[int]]]

    def made(self) -> "Parser":
        return self.parser(self.tokenizer, _request().tools)

    def whole(self) -> Heard:
        """The answer as one."""
        ids = [number for _, part in self.parts for number in part]
        text = "".join(text for text, _ in self.parts)
        reasoning, content, calls = self.made().parse(
            text, _request(), enable_auto_tools=True, model_output_token_ids=ids
        )
        found = {place: (call.name, call.arguments) for place, call in enumerate(calls or [])}
        return Heard(reasoning or "", content or "", found)

    def streamed(self) -> Heard:
        """The answer token by token, put together as a client does."""
        heard, parser, request = Heard(), self.made(), _request()
        for place, (text, ids) in enumerate(self.parts):
            delta = parser.parse_delta(text, ids, request, self.prompt, finished=place + 1 == len(self.parts))
            if delta is None:
                continue
            heard.reasoning += delta.reasoning or ""
            heard.content += delta.content or ""
            for call in delta.tool_calls or []:
                name, arguments = heard.calls.get(call.index, ("", ""))
                more = call.function
                heard.calls[call.index] = (
                    name + ((more.name or "") if more else ""),
                    arguments + ((more.arguments or "") if more else ""),
                )
        return heard


def _pieces(said: str, tokenizer: Any) -> Iterator[tuple[str, list[int]]]:
    for number in tokenizer.encode(said, add_special_tokens=False):
        yield tokenizer.decode([number]), [number]


def _harmony(said: str) -> list[tuple[str, list[int]]]:
    encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    return [(encoding.decode([one]), [one]) for one in encoding.encode(said, allowed_special="all")]


def _model(name: str, tokenizer: Any, tool_parser: str | None = None) -> Model:
    recipe, said = recipes.load(name), SAID[name]
    options = recipe.options(recipe.machines[0])
    # vLLM's own condition is the model's type (entrypoints: model_type == "gpt_oss").
    harmony = recipe.architecture == "GptOssForCausalLM"
    thinks = said.startswith(THINKING)
    parser = ParserManager.get_parser(
        tool_parser_name=tool_parser or options["tool-call-parser"],
        reasoning_parser_name=options.get("reasoning-parser"),
        enable_auto_tools=options["enable-auto-tool-choice"],
        is_harmony=harmony,
    )
    assert parser is not None
    prompt = "<|im_start|>assistant\n" + ("<think>\n" if thinks else "")
    return Model(
        parser,
        tokenizer,
        tokenizer.encode(prompt, add_special_tokens=False),
        _harmony(said) if harmony else list(_pieces(said, tokenizer)),
    )


def test_each_recipe_has_a_text_here() -> None:
    assert sorted(SAID) == recipes.names()


@pytest.mark.parametrize("way", ["whole", "streamed"])
@pytest.mark.parametrize("name", SAID)
def test_a_tool_call_comes_out_as_one(name: str, way: str, tokenizer: Any) -> None:
    heard: Heard = getattr(_model(name, tokenizer), way)()
    assert heard.tools == [("get_weather", ARGUMENTS)]
    assert heard.content.strip() == ""
    thinks = "reasoning-parser" in recipes.load(name).serve
    assert heard.reasoning.strip() == (THOUGHT if thinks else "")


@pytest.mark.parametrize("way", ["whole", "streamed"])
@pytest.mark.parametrize("name", [name for name, said in SAID.items() if said != HARMONY])
def test_control_a_wrong_parser_gives_no_call(name: str, way: str, tokenizer: Any) -> None:
    """XML as a whole stays plain text; all else is lost.

    gpt-oss has no such control: vLLM reads harmony by the model's type, whatever parser is named.
    """
    form = next(form for form in WRONG if SAID[name].endswith(form))
    heard: Heard = getattr(_model(name, tokenizer, WRONG[form]), way)()
    assert "get_weather" not in [called for called, _ in heard.calls.values()]
    assert heard.content.strip() == (XML if way == "whole" and form == XML else "")
