"""The demo model: a small NVFP4 checkpoint in ModelOpt format.

`python -m gb10.demo --out DIR` writes it in seconds, from nothing but a seed and Python's own sources. The
same seed and the same Python give the same bytes. The weights are random, so the text it writes has no
sense; shapes, names and number formats are those of the real thing.
"""

from gb10.demo.architecture import ARCHITECTURES, Architecture
from gb10.demo.checkpoint import write_checkpoint

__all__ = ["ARCHITECTURES", "Architecture", "write_checkpoint"]
