"""A few tokens through the whole model: what `judge` looks at, asked of vLLM's engine.

Three texts are continued greedily, two of them with the same last words; then one step of two of the answers
is asked for again, with the text and what was written as one prompt. So the model decodes, prefills more
tokens than its kernels for decode take, and does both of the same text. No request reads the prefix cache.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineGenerateError

from gb10.vllm_plugin.server import judge
from gb10.vllm_plugin.server.judge import Answer, Answers, Step

TOKENS = 4
"""Tokens of each answer."""

_TOP = 20
"""Likeliest tokens whose probabilities are asked for, where vLLM allows as many (--max-logprobs)."""

_END = " Once more, the numbers in their order are one, two, three, four, five, six, seven,"
_TEXTS = (
    "The days of the week have names that are as old as the calendar itself. The first working day is "
    "Monday, after it come Tuesday, Wednesday, Thursday and Friday, when the week is over for many of us. "
    "On Saturday the shops are open, and on Sunday they are closed, so that everybody can rest a little.",
    "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n    return "
    "area(width, height) * depth\n\n\nif __name__ == '__main__':\n    print(area(3, 4))\n    print(volume(3, "
    "4, 5))\n\nThe program prints the number 12 and the number 60, each of them on a line of its own.",
    "Water freezes at zero degrees and boils at one hundred degrees. Ice is lighter than water, and so it "
    "swims on it; a lake freezes from above, and the fish below the ice live through the winter. When spring "
    "comes the ice melts, the rivers are full, and the first flowers can be seen on the banks of the",
)
"""Two that get the same end, so that what was before it is all that differs, and one that does not."""

_PART = 60
"""Tokens of a part of a text where there is no tokenizer."""

_LOWEST, _BAND, _STRIDE = 300, 3000, 37
"""There: token ids from the first common words of a vocabulary, which are no special ones."""


@dataclass(frozen=True)
class Texts:
    """The parts of the prompts, as token ids."""

    first: list[int]
    second: list[int]
    end: list[int]
    other: list[int]

    def prompts(self, room: int) -> list[list[int]]:
        """At most ``room`` tokens each: two of one length and one end, and one with another last token."""
        end = self.end[-max(min(len(self.end), room // 2), 1) :]
        length = min(len(self.first), len(self.second), room - len(end))
        other = self.other[:room]
        while len(other) > 1 and other[-1] == end[-1]:
            other.pop()
        return [self.first[:length] + end, self.second[:length] + end, other]


@dataclass(frozen=True)
class Sung:
    """What a canary brought. ``fault`` is what is wrong with the model, None where nothing is."""

    fault: str | None
    tokens: int
    seconds: float
    apart: float | None
    """How far decode and prefill are from each other (`judge.apart`), None where that is not known."""

    @property
    def words(self) -> str:
        """One line on it."""
        distance = "" if self.apart is None else f", decode and prefill differ by {self.apart:.3f}"
        return f"{self.tokens} tokens in {self.seconds:.1f} s{distance}: {self.fault or 'the model answers'}"


class Unasked(Exception):
    """vLLM does not take the canary's requests, or has no room for them now."""


class Canary:
    """Asks one engine. ``client`` is vLLM's AsyncLLM. It is good for many times.

    ``seen`` is told what each time brought.
    """

    def __init__(self, client: Any, seen: Callable[[Sung], None] = lambda _: None) -> None:
        self._client, self._seen = client, seen
        model = client.model_config
        self._vocabulary = int(model.get_vocab_size())
        most = model.max_logprobs
        self._top = min(_TOP, self._vocabulary if most == -1 else most)
        self._probabilities = model.logprobs_mode.endswith("logprobs")
        self._room = int(model.max_model_len)
        self._numbers = count()
        tokenizer = client.tokenizer
        self._texts = _made_up(self._vocabulary) if tokenizer is None else _tokenized(tokenizer)
        self._ends = _ends(model, tokenizer)

    @property
    def _tokens(self) -> int:
        """Tokens of an answer, as many as the context has room for behind a text of two."""
        return min(TOKENS, self._room - 2)

    async def sing(self) -> Sung:
        """Ask, and judge the answers.

        Raises Unasked where vLLM refuses the requests, and what vLLM raises when its engine is dead.
        """
        began, tokens = time.monotonic(), self._tokens
        if tokens < 1:
            raise Unasked(f"a context of {self._room} tokens has no room for it")
        prompts = self._texts.prompts(self._room - tokens)
        written = await self._all([self._ask(prompt, tokens) for prompt in prompts])
        again: list[tuple[Step, Step]] = []
        if tokens > 1 and all(len(answer) == tokens for answer in written):
            chosen = [(prompts[place], written[place]) for place in (0, -1)]
            texts = [prompt + [step.token for step in answer[:-1]] for prompt, answer in chosen]
            read = await self._all([self._ask(text, 1) for text in texts])
            again = [(answer[-1], step) for (_, answer), (step, *_) in zip(chosen, read, strict=True)]
        # In a very short context the same is left of both.
        alike = 2 if prompts[0] != prompts[1] else 0
        answers = Answers(written[:alike], written[alike:], again, self._ends, self._probabilities)
        known = self._probabilities and again and self._top > 1
        sung = Sung(
            judge.fault(answers, tokens),
            sum(map(len, answers.all)),
            time.monotonic() - began,
            min(judge.apart(*pair) for pair in again) if known else None,
        )
        self._seen(sung)
        return sung

    async def _all(self, asked: Sequence[Any]) -> list[Answer]:
        try:
            return list(await asyncio.gather(*asked))
        except EngineGenerateError as error:
            # Not the engine's: what a request goes through before it is sent.
            raise Unasked(said(error.__cause__ or error)) from error
        except (VLLMClientError, GracefulHTTPError) as error:
            raise Unasked(said(error)) from error

    async def _ask(self, prompt: list[int], tokens: int) -> Answer:
        parameters = SamplingParams(
            max_tokens=tokens,
            temperature=0,
            logprobs=self._top,
            ignore_eos=True,
            detokenize=False,
            skip_reading_prefix_cache=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name = f"gb10-canary-{next(self._numbers)}"
        last = None
        async for output in self._client.generate({"prompt_token_ids": prompt}, parameters, name):
            last = output.outputs[0]
        if last is None:
            return []
        numbers = last.logprobs or [{}] * len(last.token_ids)
        return [
            Step(token, {other: found.logprob for other, found in each.items()})
            for token, each in zip(last.token_ids, numbers, strict=True)
        ]


def said(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _tokenized(tokenizer: Any) -> Texts:
    first, second, other = (list(tokenizer.encode(text)) for text in _TEXTS)
    return Texts(first, second, list(tokenizer.encode(_END, add_special_tokens=False)), other)


def _made_up(vocabulary: int) -> Texts:
    low = min(_LOWEST, vocabulary // 4)
    band = min(_BAND, vocabulary - low)
    ids = [low + number * _STRIDE % band for number in range(4 * _PART)]
    first, second, end, other = (ids[start : start + _PART] for start in range(0, len(ids), _PART))
    return Texts(first, second, end, other)


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text, as far as the model's configuration and its tokenizer name them."""
    said = [getattr(tokenizer, "eos_token_id", None), getattr(model.hf_text_config, "eos_token_id", None)]
    said.append(model.try_get_generation_config().get("eos_token_id"))
    flat = [part for one in said for part in (one if isinstance(one, list) else [one])]
    return frozenset(token for token in flat if isinstance(token, int))
