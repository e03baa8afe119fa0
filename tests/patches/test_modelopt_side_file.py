"""patches/vllm/0013: hf_quant_config.json may name every algorithm that ModelOpt's classes know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config, modelopt
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase


def _normalized(quantization: dict[str, Any]) -> dict[str, Any]:
    section = {"producer": {"name": "modelopt", "version": "0.44.0"}, "quantization": quantization}
    convertor = ModelArchConfigConvertorBase.__new__(ModelArchConfigConvertorBase)
    found: dict[str, Any] = convertor._normalize_quantization_config(
        SimpleNamespace(quantization_config=section)
    )
    return found


@pytest.mark.parametrize("algorithm", modelopt.QUANT_ALGOS)
def test_each_algorithm_gets_its_class(algorithm: str) -> None:
    """As ModelConfig asks them: each class whether the section is its own. What none claims is "modelopt"."""
    section = _normalized({"quant_algo": algorithm})
    assert section["quant_method"].startswith("modelopt")
    claims = {
        claim
        for name in QUANTIZATION_METHODS
        if name.startswith("modelopt")
        and (claim := get_quantization_config(name).override_quantization_method(section, None))
    }
    owners = {name: owner for name, (owner, _) in modelopt.LINEAR_ALGOS.items()}
    assert (claims or {section["quant_method"]}) == {owners.get(algorithm, "modelopt_mixed")}


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown ModelOpt quant algo: NVFP3"):
        _normalized({"quant_algo": "NVFP3"})
