"""Long texts as the one line that a user reads."""

import re

_LONGEST = 360


def one_line(text: str) -> str:
    """``text`` without line ends and double blanks, cut between two words where it is too long."""
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4].rsplit(" ", 1)[0] + " ..."
