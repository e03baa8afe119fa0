"""What recipes say is predicted, against `gb10 predict`."""

import pytest

from gb10 import recipes
from gb10.predict.architecture import architectures
from gb10.predict.engines import OURS, predict, published
from gb10.predict.measured import VLLM
from gb10.predict.step import Load

WITHOUT = {
    "nemotron-3.5-lightning": "gb10 predict knows no Nemotron",
    "qwen3-coder-next": "gb10 predict means the maker's FP8, the recipe Red Hat's NVFP4",
    "qwen3.8-27b": "gb10 predict counts MTP's drafts, not DFlash2's",
    "qwen3.8-flash-next": "gb10 predict means one GB10, the recipe two",
}
"""Recipes without a prediction, and why."""


@pytest.mark.parametrize("name", recipes.names())
def test_what_is_said_is_what_is_predicted(name: str) -> None:
    recipe = recipes.load(name)
    said = {one.predicted for one in recipe.machines} - {None}
    if name in WITHOUT:
        assert said == set()
        return
    drafts = recipe.serve.get("speculative-config", {"num_speculative_tokens": 0})
    subject = published(architectures()[name], recipe.serve.get("kv-cache-dtype"))
    load = Load(sequences=1, context=1024, drafts=drafts["num_speculative_tokens"])
    assert drafts.get("method", "mtp") == "mtp"
    if subject.unfit:
        made = predict(subject, VLLM, load)
    else:
        made = predict(subject, OURS, load, dense="fp8", head="fp8")
    assert said == {round(made.tokens_per_second, 1)}
