"""The token ids of a reduced draft vocabulary, from GB10_DRAFT_VOCABULARY. Light: no torch, no vLLM.

The variable is `FILE` or `FILE:N`. The file is a JSON list of token ids, most frequent first; `:N` takes the
first N of them. See `gb10.vllm_plugin.draft.vocabulary` for what it does.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gb10.errors import UserError
from gb10.files import read_bytes

ENV_NAME = "GB10_DRAFT_VOCABULARY"


@dataclass(frozen=True)
class DraftVocabulary:
    """The token ids that a draft may be."""

    ids: tuple[int, ...]
    source: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "DraftVocabulary | None":
        """Read GB10_DRAFT_VOCABULARY; None where it is unset or empty.

        Raises UserError for a file that cannot be read, for other content than token ids, for a wrong N.
        """
        value = environ.get(ENV_NAME, "")
        return cls.parse(value) if value else None

    @classmethod
    def parse(cls, value: str) -> "DraftVocabulary":
        """Read `FILE` or `FILE:N`. Raises UserError as `from_env` does."""
        name, colon, count = value.rpartition(":")
        if not (colon and re.fullmatch("[0-9]{1,19}", count)):
            return cls(tuple(read_ids(Path(value))), value)
        ids = read_ids(Path(name))
        if not 0 < int(count) <= len(ids):
            raise UserError(f"{ENV_NAME}={value}: the file has {len(ids)} ids; N must be 1 to {len(ids)}")
        return cls(tuple(ids[: int(count)]), value)

    def check(self, vocabulary: int) -> None:
        """Raise UserError when an id is not below the model's `vocabulary`, the number of its tokens."""
        largest = max(self.ids)
        if largest >= vocabulary:
            raise UserError(
                f"{ENV_NAME}={self.source} has token id {largest}, but the model has {vocabulary} tokens; "
                "take the file of this model"
            )


def read_ids(file: Path) -> list[int]:
    """Read a JSON list of different token ids. Raises UserError when it is none."""
    try:
        content = json.loads(read_bytes(file))
    except OSError as error:
        raise UserError(f"cannot read the draft vocabulary {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"the draft vocabulary {file} is not JSON: {error}") from error
    if not isinstance(content, list) or not content:
        raise UserError(f"the draft vocabulary {file} must be a JSON list of token ids")
    if any(not isinstance(entry, int) or isinstance(entry, bool) or entry < 0 for entry in content):
        raise UserError(f"the draft vocabulary {file} has an entry that is no token id of 0 or more")
    if len(set(content)) != len(content):
        raise UserError(f"the draft vocabulary {file} has a token id twice")
    return content
