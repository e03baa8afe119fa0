"""Requests of every kind, in engines without drafts and with them: a program that writes JSON.

Usage: python speculative_requests.py MODEL HELD_OUT FILE. The form of FILE is that of `main`'s `answer`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference import lean
from tokenizers import Tokenizer

from gb10_lab.speculative import engine as engines
from gb10_lab.speculative.distribution import corrected, same_distribution
from gb10_lab.speculative.engine import Engine
from gb10_lab.speculative.equality import TOP, Completion
from gb10_lab.speculative.prompts import read_prompts

PROMPTS, PROMPT, TOKENS = 3, 160, 24
"""How many prompts, and tokens of each prompt and of each completion."""
SAMPLES, SAMPLED = 600, 3
RARE = "qxz"
LIMIT = 1500
"""Seconds for all engines that a file of tests starts; ten minutes where a processor has no BF16."""

ENGINES: dict[str, dict[str, Any]] = {
    **{f"mtp {count}": {"num_speculative_tokens": count} for count in (1, 2, 3, 4)},
    # Requests end one after the other, so all three counts come up.
    "mtp 4, 2 or 1": {
        "num_speculative_tokens": 4,
        "num_speculative_tokens_per_batch_size": [[1, 2, 4], [3, 6, 2], [7, 64, 1]],
    },
    # The last one: numba, which it imports, keeps vLLM from starting one more engine in a process.
    "n-gram": {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
    },
}

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3},
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}
GRAMMARS: dict[str, dict[str, Any]] = {
    "words": {"regex": r"[a-z_ ]{50,60}"},
    "assignment": {"regex": r"self\.[a-z]{3,9} = [a-z]{3,9}\n"},
    "letters": {"regex": r"(ab|cd){3,5}-[0-9]{4}"},
    "schema": {"json": SCHEMA},
    "choice": {"choice": ["return None", "return True", "raise ValueError"]},
    "call": {"grammar": 'root ::= name "(" name (", " name)* ")"\nname ::= [a-z]{2,6}\n'},
}
GREEDY: dict[str, dict[str, Any]] = {
    "plain": {},
    "repetition": {"repetition_penalty": 1.3},
    "presence and frequency": {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    "bad words": {"bad_words": ["self", " self", " the", "return"]},
    "allowed tokens": {"allowed_token_ids": list(range(0, 6144, 3))},
    "least tokens": {"min_tokens": 20, "stop_token_ids": list(range(3, 600))},
    "stop": {"stop": ["\n\n", "):"], "detokenize": True},
    "end of text": {"ignore_eos": False},
    "log-probabilities": {"logprobs": 3},
    "log-probabilities of the prompt": {"prompt_logprobs": 1},
}
ONE_TOKEN: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 1},
    "top_p": {"top_p": 1e-6},
    "top_k and top_p": {"top_k": 1, "top_p": 0.9},
}
"""Sampling that leaves one token: the greedy text."""
ALONE = [*ONE_TOKEN, "plain", "repetition", "bad words", "grammar: words", "grammar: schema"]
"""Kinds that are also sent alone."""
SAMPLED_ALIKE: dict[str, dict[str, Any]] = {
    "seed": {},
    "n": {"n": 3},
    "all": {
        "top_k": 20,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "bad_words": ["self"],
        "logprobs": 2,
    },
    "grammar": {"structured_outputs": GRAMMARS["words"], "ignore_eos": False},
}
"""Sampling that cannot be compared with the text without drafts: the same seed gives the same text again."""
NARROW = {"temperature": 0.9, "top_k": 12, "top_p": 0.9, "repetition_penalty": 1.2}
REFUSED: dict[str, dict[str, Any]] = {
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "logit_bias": {"logit_bias": {17: 5.0}},
}


def kinds() -> dict[str, dict[str, Any]]:
    """All requests whose completion is known: by name, the sampling parameters."""
    grammars = {
        f"grammar: {name}": {"structured_outputs": grammar, "ignore_eos": False}
        for name, grammar in GRAMMARS.items()
    }
    one = {name: options | {"temperature": 1.0, "seed": 1} for name, options in ONE_TOKEN.items()}
    greedy = {name: options | {"temperature": 0.0} for name, options in (GREEDY | grammars).items()}
    return greedy | one


def with_structure(options: dict[str, Any]) -> dict[str, Any]:
    """Turn the description of a grammar into vLLM's own form."""
    from vllm.sampling_params import StructuredOutputsParams

    if "structured_outputs" not in options:
        return options
    return options | {"structured_outputs": StructuredOutputsParams(**options["structured_outputs"])}


class Requests:
    """All requests of one engine."""

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]]) -> None:
        self._engine, self._prompts = engine, prompts

    def together(self, chosen: dict[str, dict[str, Any]], **common: Any) -> dict[str, list[Any]]:
        """Send each kind with each prompt, all at once: steps with drafts of any number in one batch."""
        pairs = [(name, at) for name in chosen for at in range(len(self._prompts))]
        outputs = self._engine.outputs(
            [self._prompts[at] for _, at in pairs],
            [with_structure({"max_tokens": TOKENS} | chosen[name] | common) for name, _ in pairs],
        )
        found: dict[str, list[Any]] = {name: [] for name in chosen}
        for (name, _), output in zip(pairs, outputs, strict=True):
            found[name].append(output)
        return found

    def alone(self, options: dict[str, Any], prompt: int = 0) -> Any:
        """Send one request: its first step has no draft of another request beside it."""
        return self._engine.outputs(
            [self._prompts[prompt]], [with_structure({"max_tokens": TOKENS} | options)]
        )[0]

    def repeats(self) -> dict[str, bool]:
        """Whether the same seed gives the same again."""
        found = {}
        for name, options in SAMPLED_ALIKE.items():
            twice = [self.alone(options | {"temperature": 0.8, "seed": 3}) for _ in range(2)]
            texts = [[tuple(part.token_ids) for part in output.outputs] for output in twice]
            found[name] = texts[0] == texts[1] and len(texts[0]) == options.get("n", 1) and all(texts[0])
        return found

    def refusals(self) -> dict[str, str]:
        """What is said to requests that vLLM does not take with drafts."""
        from vllm.exceptions import VLLMValidationError

        found = {}
        for name, options in REFUSED.items():
            try:
                self.alone(options)
            except VLLMValidationError as error:
                found[name] = str(error)
        return found

    def draw(self, seed: int, **parameters: Any) -> list[tuple[int, tuple[int, ...]]]:
        """Samples for the distribution test."""
        prompt = self._prompts[0][-32:]
        return [(0, one) for one in self._engine.samples(prompt, SAMPLES, SAMPLED, seed, **parameters)]


def gap(expected: Completion, tokens: Sequence[int]) -> float:
    """How much less likely (nats) than the one without drafts the first other token is.

    0 when there is none; infinite when the completion goes on where it ended without drafts.
    """
    for at, token in enumerate(expected.tokens):
        other = tokens[at] if at < len(tokens) else -1
        if other != token:
            top = expected.top[at]
            return top[token] - top.get(other, min(top.values()))
    return math.inf if len(tokens) > len(expected.tokens) else 0.0


def gaps(reference: dict[str, list[Completion]], outputs: dict[str, list[Any]]) -> dict[str, list[float]]:
    """The gap of each prompt by kind. What leaves one token is compared with the greedy text."""
    return {
        name: [
            gap(expected, output.outputs[0].token_ids)
            for expected, output in zip(reference["plain" if name in ONE_TOKEN else name], found, strict=True)
        ]
        for name, found in outputs.items()
    }


def logprob_error(reference: Sequence[Completion], outputs: Sequence[Any]) -> float:
    """The largest difference of a token's log-probability (nats), up to the first other token."""
    worst = 0.0
    for expected, output in zip(reference, outputs, strict=True):
        own = engines.completion(output)
        for left, right, mine, theirs in zip(
            expected.tokens, own.tokens, expected.top, own.top, strict=False
        ):
            if left != right:
                break
            worst = max(worst, abs(mine[left] - theirs[right]))
    return worst


def main(model: str, held_out: str, file: str) -> None:
    """Write {engine: {"gaps", "alone", "logprob error", "repeats", "refusals", "accepted", "p", ...}}."""
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    prompts = [prompt.ids[-PROMPT:] for prompt in read_prompts(Path(held_out), tokenizer, PROMPTS, seed=2)]
    settings = engines.Settings(
        Path(model),
        concurrency=16,
        max_model_len=PROMPT + TOKENS + 8,
        # The log-probabilities that a token is chosen by: after penalties and masks.
        extra={"skip_tokenizer_init": False, "logprobs_mode": "processed_logprobs", "seed": 0},
    )
    engines.prepare(settings)
    lean.install()
    answer: dict[str, Any] = {}
    with Engine(settings, 0) as engine:
        requests = Requests(engine, prompts)
        greedy = {name: options for name, options in kinds().items() if name not in ONE_TOKEN}
        reference = {
            name: [engines.completion(output) for output in outputs]
            for name, outputs in requests.together(greedy, logprobs=TOP).items()
        }
        answer["no drafts"] = {"gaps": gaps(reference, requests.together(kinds()))}
        drawn = requests.draw(0, **NARROW)
        answer["no drafts"]["p of another sampler"] = corrected(
            same_distribution(drawn, requests.draw(1 << 19))
        )
    for name, speculative in ENGINES.items():
        count = speculative["num_speculative_tokens"]
        with Engine(settings, count, **speculative) as engine:
            requests = Requests(engine, prompts)
            before = engine.counters()
            outputs = requests.together(kinds())
            counters = engine.counters().since(before)
            singly = {kind: [requests.alone(kinds()[kind])] for kind in ALONE}
            first = {kind: completions[:1] for kind, completions in reference.items()}
            answer[name] = {
                "gaps": gaps(reference, outputs),
                "alone": gaps(first, singly),
                "logprob error": logprob_error(reference["log-probabilities"], outputs["log-probabilities"]),
                "refusals": requests.refusals(),
                "repeats": requests.repeats(),
                "drafts": counters.drafts,
                "accepted": sum(counters.accepted),
            }
            if name == "mtp 3":
                answer[name]["p"] = corrected(same_distribution(drawn, requests.draw(1 << 20, **NARROW)))
                # Drafts that grammars allow and the model does not want: steps of all lengths.
                engine.restrict([one for letter in RARE for one in tokenizer.encode(letter).ids])
                before = engine.counters()
                grammars = {kind: options for kind, options in kinds().items() if "grammar" in kind}
                answer["mtp 3, rare letters"] = {
                    "gaps": gaps(reference, requests.together(grammars)),
                    "accepted": sum(engine.counters().since(before).accepted),
                }
    Path(file).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
