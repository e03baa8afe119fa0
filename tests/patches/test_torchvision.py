"""patches/torchvision/0001: without its compiled operators torchvision imports, and its transforms work."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torchvision")

WITHOUT_OPERATORS = """
import gc
gc.disable()
import torch, torchvision
from torchvision.transforms.v2 import functional
assert not torchvision.extension._has_ops()
image = torch.arange(3 * 8 * 8, dtype=torch.float32).reshape(3, 8, 8)
assert torch.equal(functional.resize(image, [8, 8]), image)
assert functional.resize(image, [4, 2]).shape == (3, 4, 2)
from transformers import Qwen2VLImageProcessor, Qwen3VLVideoProcessor
pixels = Qwen2VLImageProcessor()(images=[image.to(torch.uint8)], return_tensors="pt")["pixel_values"]
assert torch.isfinite(pixels).all() and pixels.std() > 0
try:
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except RuntimeError as error:
    assert "Couldn't load custom C++ ops" in str(error), error
else:
    raise SystemExit("an operator that is not there has answered")
"""


def test_transforms_need_no_operator() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_OPERATORS], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
