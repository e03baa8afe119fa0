"""The demo model: the trained model in NVFP4, with the same bytes wherever it is made."""

import hashlib
from pathlib import Path

from gb10_lab.testbed.quantize import quantize_checkpoint

SHA256 = {
    "config.json": "82a7d720fa332ee71592f0c92fe9327b0545c5cfd7514d985dc0054d080aac4e",
    "generation_config.json": "d66ea78f026b3fd867da89c6701c915bcc48bce8727169b0d0434100ea7e4f76",
    "hf_quant_config.json": "3eb5d50ce5ca9509c86c81a7e83a4ec46c0f949011512bf74095c38a398882a5",
    "model.safetensors": "3154ce1e4c5df2a66cf15efb1a378848ad7b8d95c87047a9a9b982173795a2ba",
    "tokenizer.json": "c6c6f5f9016433939cf58d735bec815715de551bdcfdfca9436ec5b47916f730",
    "tokenizer_config.json": "dced7ee80b84bf10a60cc30b4b74d55718328e7a6fba72af0db5a832d176b829",
}
"""After another training run: the names and sums that the failing test prints."""


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_it_has_the_known_bytes(demo_model: Path) -> None:
    found = digests(demo_model)
    print(found)
    assert found == SHA256


def test_making_it_again_gives_the_same_bytes(testbed: Path, demo_model: Path, tmp_path: Path) -> None:
    quantize_checkpoint(testbed, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(demo_model)
