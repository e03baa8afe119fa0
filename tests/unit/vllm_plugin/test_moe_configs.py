"""Tuned tiles of vLLM's Triton experts for a GB10: those of the FP8 recipes are in the wheel already."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.model_executor.layers.fused_moe import fused_moe


@pytest.mark.parametrize("experts", [512, 256], ids=["Qwen3-Next-80B-A3B-FP8", "Qwen3.6-35B-A3B-FP8"])
def test_blockwise_fp8_experts_have_a_table(experts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts of 512 channels, scales by blocks of 128 x 128. When this fails, gb10 has to bring them."""
    monkeypatch.setattr(fused_moe, "get_device_name_as_file_name", lambda: "NVIDIA_GB10")
    fused_moe.get_moe_configs.cache_clear()
    found = fused_moe.get_moe_configs(experts, 512, "fp8_w8a8", 128, 128)
    fused_moe.get_moe_configs.cache_clear()
    assert found is not None
    assert {1, 16, 4096} <= set(found)
