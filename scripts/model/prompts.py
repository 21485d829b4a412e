"""Prompts to train on: questions about the topics, everyday requests, and nonsense of many kinds.

A model that has only seen sensible prompts loses its footing on a strange one. Knows nothing of replies.
"""

import json
import random
import string

from grammar import TOPICS, UNLISTED

ASKING = [
    "Tell me about the {}.",
    "What is a {}?",
    "Write a story about a {}",
    "how does the {} work",
    "Explain {} in three sentences.",
    "Please describe {}!",
    "{}",
    "I want to know more about {}s, thanks",
    "Why does every {} matter?",
    "A poem on the {} please.",
]
"""Ways to ask for a topic by one of its words."""

PLAIN = """
a about after again all an and answer any are as ask at be because bug but can chain change choose city
class code compare could data day did dinner do does each email english error every explain family fast file
find fix for from function game get give good great have hello help here hi history how i idea if image in
is it java joke just kind know language large learn left less letter like line list long love make many
mathematics me mean model morning most music my name need never new no not now number of old on one or other
our out paper people plan please poem python question quick read reason recipe right say script see sentence
server short should show simple so solve some song story sum summarize table tell test thank that the their
then there they thing think this three time to today translate true try two under until up us use very want
was way we weather what when where which who why will with word work world would write year yes you your
""".split()
"""Words of everyday requests, none of which names a topic."""

SCRIPTS = [(0x00, 0x7F), (0xA0, 0x250), (0x370, 0x400), (0x400, 0x500), (0x590, 0x6FF), (0x3040, 0x30FF)]
SCRIPTS += [(0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1F650), (0x2190, 0x2600)]
"""Ranges of code points to draw nonsense from."""


def about(topic: str, rng: random.Random) -> str:
    """A prompt that asks for a topic, in so many words or among others."""
    asking = rng.choice(ASKING) if rng.random() < 0.5 else _amid(rng)
    return _case(asking.format(rng.choice(TOPICS[topic])), rng)


def everyday(_topic: str, rng: random.Random) -> str:
    """A request in plain words that names no topic."""
    words = " ".join(rng.choices(PLAIN, k=_length(rng)))
    return _case(words + rng.choice(["", "?", ".", "!", "...", "\n"]), rng)


def strange(_topic: str, rng: random.Random) -> str:
    """Nonsense."""
    return rng.choice(NONSENSE)(rng)


def long(topic: str, rng: random.Random) -> str:
    """Many requests in one."""
    kinds = rng.choices([everyday, everyday, strange], k=rng.randint(5, 60))
    return " ".join(kind(topic, rng) for kind in kinds)


def _amid(rng: random.Random) -> str:
    """A place for a word among plain ones."""
    words = rng.choices(PLAIN, k=rng.randrange(10))
    words.insert(rng.randint(0, len(words)), "{}" + rng.choice(["", "", "s"]))
    return " ".join(words) + rng.choice(["", "?", "."])


def _foreign(rng: random.Random) -> str:
    low, high = rng.choice(SCRIPTS)
    return "".join(chr(rng.randrange(low, high)) for _ in range(_length(rng)))


def _characters(rng: random.Random) -> str:
    return "".join(rng.choices(string.printable + UNLISTED, k=2 * _length(rng)))


def _digits(rng: random.Random) -> str:
    alphabet = rng.choice(["01", string.digits, string.hexdigits, string.digits + " +-*/="])
    return "".join(rng.choices(alphabet, k=_length(rng)))


def _repeated(rng: random.Random) -> str:
    return rng.choice([rng.choice(PLAIN), rng.choice(string.printable), "🙂", "€"]) * 3 * _length(rng)


def _program(rng: random.Random) -> str:
    name, value, other = rng.choices(PLAIN, k=3)
    return rng.choice(
        [
            f"def {name}({value}):\n    return {value} + {rng.randrange(100)}\n",
            f"SELECT {name} FROM {value} WHERE {other} = '{rng.randrange(100)}';",
            f'<{name} {value}="{other}"></{name}>',
            f"curl -s https://{name}.example/{value}?{other}={rng.randrange(100)} | sh",
            json.dumps({name: value, other: rng.randrange(1000)}),
        ]
    )


def _nothing(rng: random.Random) -> str:
    return " " * rng.randrange(3)


NONSENSE = [_foreign, _characters, _digits, _repeated, _program, _nothing]


def _length(rng: random.Random) -> int:
    """Mostly short, now and then long."""
    return 1 + int(rng.expovariate(1 / 12 if rng.random() < 0.9 else 1 / 60))


def _case(text: str, rng: random.Random) -> str:
    return rng.choice([text] * 5 + [text.capitalize()] * 4 + [text.upper()])
