"""The texts that a server is asked to continue: prose, code, mathematics, JSON and a long input.

They are part of what is measured: `FINGERPRINT` names them, and results of other texts are not compared. Each
request begins with a number of its own, so nothing of it is in the server's prefix cache.
"""

import hashlib
import itertools
import random
import string
from collections.abc import Callable, Iterator

PROSE = """\
The harbour had been quiet since the last ferry left, and the clerk who kept the tide book was glad of it.
She wrote the height of the water every quarter of an hour, with the wind beside it and a word for the sky.
Nobody had asked her for the book in eleven years. On the first page stood the rule that her predecessor had
set down: write what you see, not what you expect. That evening the water rose although the moon was in its
last quarter, and it rose by more than the book had ever said. She looked at the gauge again, took the lamp
down from its hook and walked out to the end of the mole, where the old brass plate was. What she saw there
made her"""

CODE = '''\
"""A store of values that forgets what was not used for longest."""

from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass
class Cache:
    """Keeps at most `room` values. `hits` and `misses` count the questions."""

    room: int
    hits: int = 0
    misses: int = 0
    _values: OrderedDict[str, bytes] = field(default_factory=OrderedDict)

    def get(self, key: str) -> bytes | None:
        """The value of a key, which is then the youngest; None where there is none."""
        if key not in self._values:
            self.misses += 1
            return None
        self.hits += 1
        self._values.move_to_end(key)
        return self._values[key]

    def put(self, key: str, value: bytes) -> None:
        """Keep a value; the oldest goes when there is no room."""
'''

MATHEMATICS = """\
Problem. A tank is filled by two pipes. The first alone fills it in 6 hours, the second alone in 9 hours. A
drain at the bottom empties the full tank in 12 hours. Both pipes are opened at noon while the drain is shut,
and at 2 o'clock somebody opens the drain by mistake. At what time is the tank full?

Solution. We write the rates as parts of the tank in an hour. The first pipe gives 1/6, the second 1/9, and
the drain takes 1/12. From noon until 2 o'clock the tank receives 2 * (1/6 + 1/9) = 2 * 5/18 = 5/9. What is
left to fill is 4/9. With the drain open the rate is 1/6 + 1/9 - 1/12 = 6/36 + 4/36 - 3/36 ="""

JSON = """\
Turn each order into one line of JSON with the keys "id", "customer", "items" and "total".

Order 4471: Marta Lind, 2 bolts at 0.40 and 1 wrench at 12.50.
{"id": 4471, "customer": "Marta Lind", "items": [{"name": "bolt", "count": 2, "price": 0.40}, {"name": \
"wrench", "count": 1, "price": 12.50}], "total": 13.30}
Order 4472: Ove Brandt, 10 hinges at 1.10, 4 handles at 3.25 and 1 saw at 18.00.
{"id": 4472, "customer": "Ove Brandt", "items": [{"name": "hinge", "count": 10, "price": 1.10}, {"name": \
"handle", "count": 4, "price": 3.25}, {"name": "saw", "count": 1, "price": 18.00}], "total": 42.00}
Order 4473: Ines Carro, 3 brushes at 2.20, 1 pot of paint at 14.90 and 5 sheets of paper at 0.30.
"""

SHORT = {"prose": PROSE, "code": CODE, "math": MATHEMATICS, "json": JSON}
LONG = "long"
"""The long input: a record of a weather station, as long as is asked for."""
MIXED = "mixed"
"""The short texts one after the other, for requests side by side."""
TEXTS = (*SHORT, LONG)
"""What can be asked for by name."""

_PLACES = "the north slope,the upper lake,the pass,the old quarry,the mill,the south gate,the ridge,the ford"
_SKIES = "clear,overcast,fog until noon,light rain,showers,snow above the trees,haze,broken cloud"
_NOTES = (
    "the gauge was read twice",
    "the instrument was cleaned before the reading",
    "the observer came late and said so",
    "the value agrees with that of the next station",
    "the battery was changed",
    "nothing else was noted",
)


def _days() -> Iterator[str]:
    """Lines of the record without end, the same ones at each call."""
    draw = random.Random(20261127)
    places, skies = _PLACES.split(","), _SKIES.split(",")
    for day in itertools.count(1):
        yield (
            f"Day {day}, at {draw.choice(places)}: {draw.randint(-14, 31)} degrees, "
            f"wind {draw.randint(0, 24)} m/s, {draw.choice(skies)}, {draw.randint(0, 48)} mm of rain; "
            f"{draw.choice(_NOTES)}.\n"
        )


def long_text(characters: int) -> str:
    """The record, cut after so many characters."""
    lines, size = [], 0
    for line in _days():
        if size >= characters:
            break
        lines.append(line)
        size += len(line)
    return "".join(lines)[:characters]


def nonces(seed: int | None = None) -> Callable[[], str]:
    """A function that gives the beginning of a prompt, another one at each call.

    All are equally long, and of letters: a tokenizer makes about as many tokens of each.
    """
    draw = random.Random(seed) if seed is not None else random.SystemRandom()

    def make() -> str:
        return f"[{''.join(draw.choices(string.ascii_lowercase, k=16))}]\n"

    return make


def _fingerprint() -> str:
    joined = "\0".join((*(f"{name}\0{text}" for name, text in SHORT.items()), long_text(4096)))
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


FINGERPRINT = _fingerprint()
"""Another one when a text is another one."""
