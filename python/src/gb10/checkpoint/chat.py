"""Whether a checkpoint says how messages become one text; without that vLLM refuses chat requests."""

import json
from pathlib import Path

from gb10.files import read_bytes

_IN_JSON = ("tokenizer_config.json", "chat_template.json", "processor_config.json")
_FILES = ("chat_template.jinja", "additional_chat_templates", "tekken.json")
"""What transformers looks for; Mistral's tokenizers need no template."""


def has_template(folder: Path) -> bool:
    """Whether a checkpoint brings a chat template, in any of the places where transformers finds one."""
    if any((folder / name).exists() for name in _FILES):
        return True
    for name in _IN_JSON:
        try:
            content = json.loads(read_bytes(folder / name))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and content.get("chat_template"):
            return True
    return False
