"""The token ids of a reduced draft vocabulary, from GB10_DRAFT_VOCABULARY. Light: no torch, no vLLM.

The variable is what `gb10 serve --draft-vocab` makes of its value: `full`, `FILE`, `FILE:N` or `N`. The file
is a JSON list of token ids, most frequent first; `:N` takes the first N of them. `N` alone is the ids 0 to
N - 1: byte-pair merges number their tokens by falling frequency, so it stands for a list where there is none.
See `gb10.vllm_plugin.draft.vocabulary` for what it does.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gb10.errors import UserError
from gb10.files import read_bytes

ENV_NAME = "GB10_DRAFT_VOCABULARY"

FULL = "full"
"""All tokens: as if nothing were said."""

FILE_OF_MODEL = "draft_vocabulary.json"
"""The list that a model folder may bring."""


def is_number(text: str) -> bool:
    """Whether this is an N, and no file."""
    return re.fullmatch("[0-9]{1,19}", text) is not None


@dataclass(frozen=True)
class DraftVocabulary:
    """The token ids that a draft may be."""

    ids: Sequence[int]
    source: str
    said: str = ENV_NAME
    """What the user wrote it in."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "DraftVocabulary | None":
        """Read GB10_DRAFT_VOCABULARY; None where it is unset, empty or `full`.

        Raises UserError for a file that cannot be read, for other content than token ids, for a wrong N.
        """
        value = environ.get(ENV_NAME, "")
        return cls.parse(value) if value not in ("", FULL) else None

    @classmethod
    def parse(cls, value: str, said: str = ENV_NAME) -> "DraftVocabulary":
        """Read `FILE`, `FILE:N` or `N`. Raises UserError as `from_env` does."""
        if is_number(value):
            if int(value) == 0:
                raise UserError(f"{said} {value}: a draft must be able to be some token; N is at least 1")
            return cls(range(int(value)), value, said)
        name, colon, count = value.rpartition(":")
        if not (colon and is_number(count)):
            return cls(tuple(read_ids(Path(value))), value, said)
        ids = read_ids(Path(name))
        if not 0 < int(count) <= len(ids):
            raise UserError(f"{said} {value}: the file has {len(ids)} ids; N must be 1 to {len(ids)}")
        return cls(tuple(ids[: int(count)]), value, said)

    def check(self, vocabulary: int) -> None:
        """Raise UserError when an id is not below the model's `vocabulary`, the number of its tokens."""
        largest = max(self.ids)
        if largest >= vocabulary and isinstance(self.ids, range):
            raise UserError(f"{self.said} {self.source}: the model has {vocabulary} tokens")
        if largest >= vocabulary:
            raise UserError(
                f"{self.said} {self.source} has token id {largest}, but the model has {vocabulary} tokens; "
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
