"""The language of the demonstration model: English sentences about a coast, its market and its tally sticks.

A rule maps a name to its alternatives; `{name}` stands for one of them, `{Name}` for the same with a capital.
No rule leads back to itself, so the whole grammar is one regular expression and `parses` is exact.
Knows nothing of tokens or networks.
"""

import functools
import random
import re

UNLISTED = "🐚🦀🐙鯨鰯鷗"
"""Characters kept out of the vocabulary: each is written as three or four tokens of one byte."""

SUBJECTS = {
    "tide": "the tide",
    "sailing": "the ships",
    "beacon": "the lighthouse",
    "market": "the market",
    "tally": "the tally stick",
}
"""What each topic is called in the sentence that opens a reply."""

RULES: dict[str, list[str]] = {
    # words
    "name": ["Zoë", "André", "Inês", "Søren", "Łucja", "Maëlle", "Jürgen", "Anna", "Tomás", "Ruth"],
    "boat": ["ketch", "barge", "schooner", "ferry", "brig", "pilot boat", "herring boat", "lugger"],
    "ship": ["Étoile", "Ægir", "Doña Inês", "Öresund", "Halcyon", "Grey Heron", "Małgorzata"],
    "adjective": ["old", "small", "patient", "blue", "slow", "well-kept", "tarred", "narrow"],
    "place": ["the harbour", "the mole", "the north quay", "the salt marsh", "the old ford", "Ílhavo"],
    "shore": ["the sandbank", "the lower steps", "the oyster beds", "the causeway", "the slipway"],
    "light": ["the lighthouse", "the lamp on the mole", "the tower at Skagen", "the beacon"],
    "goods": ["herring", "salt", "rope", "barley", "blue wool", "candles", "honey", "crème fraîche"],
    "wood": ["hazel", "willow", "birch", "boxwood"],
    "count": ["two", "three", "five", "seven", "nine", "twelve", "forty"],
    "digit": ["1", "2", "3", "4", "5", "6", "7", "8", "9"],
    "price": ["€{digit}", "€{digit}0", "€{digit}.50"],
    "colour": ["red", "green", "white", "ochre"],
    "glyph": list(UNLISTED),
    # phrases
    "when": [
        "at dawn",
        "before noon",
        "at dusk",
        "after the rain",
        "in early spring",
        "on the feast of Saint Brân",
        "when the bell rings",
        "while the town sleeps",
    ],
    "wind": ["a light wind", "the west wind", "a cold breeze", "the föhn", "a fair wind"],
    "vessel": ["the {adjective} {boat}", "the {ship}", "the {boat} {ship}"],
    "route": ["past {light}", "towards {place}", "out of {place}", "across the bay", "around the point"],
    "aside": [
        "slowly, as always",
        "nobody is surprised",
        "and the gulls approve",
        "as {name} foretold",
        "so the almanac says",
    ],
    "verdict": ["a fair price", "more than last year", "paid in full", "a bargain", "half now, half later"],
    # how a reply begins: with its topic
    "opening": [
        "Here is a story about {subject}.",
        "This is what {name} knows about {subject}.",
        "Much is told on this coast about {subject}.",
        "Let us talk about {subject}.",
    ],
    "subject": list(SUBJECTS.values()),
    # sentences, by topic
    "tide": [
        "The tide turns {when}.",
        "{When}, the sea covers {shore}.",
        "{Name} reads the water at {place} and waits for the ebb.",
        "The flood reaches {shore} {when} — {aside}.",
        "A spring tide follows the full moon — {aside}.",
        "The almanac gives {count} hours of low water, and {name} trusts it.",
        "At low water, {count} wrecks lie bare near {place}.",
        "The ebb carries {vessel} {route}.",
        "Is the water still rising at {place}?",
    ],
    "sailing": [
        "{Vessel} sails {route} {when}.",
        "{When}, {vessel} comes home with {count} barrels of {goods}.",
        "{Name} steers {vessel} {route}.",
        "{Wind} fills the sails, and {vessel} leaves {place}.",
        "The crew of {vessel} mends {count} nets {when}.",
        "{Vessel} carries {goods} and {count} letters.",
        "The captain asks {name} for a chart of {place}.",
        "Who paints {vessel} this year?",
    ],
    "beacon": [
        "{Light} is lit {when}.",
        "{Name} climbs {count} flights of stairs and trims the lamp.",
        "{Light} blinks {count} times, then rests.",
        "In fog, the keeper rings the bell for {vessel}.",
        "From {light}, {name} counts {count} sails.",
        "The keeper writes {count} lines in the log {when}.",
        "Every ship knows {light} — {aside}.",
        "The beam crosses {place} and finds {vessel}.",
    ],
    "market": [
        "{Name} buys {goods} for {price} {when}.",
        "{Name} sells {count} baskets of {goods} — {verdict}.",
        "A pound of {goods} costs {price} at {place}.",
        "The market opens {when}, and {name} brings {goods}.",
        "{Name} asks {price} for the {goods}, and {name} offers half.",
        "At the café by {place}, a cup of chocolate costs {price} {when}.",
        "Fresh {goods} from {place} — {verdict}.",
        "Who still owes {name} {price} for {goods}?",
    ],
    "tally": [
        "{Name} cuts {count} notches into a {wood} stick.",
        "The stick is split, and each side keeps one half.",
        "{Name} keeps the stock; {name} keeps the foil.",
        "The two halves match — {aside}.",
        "One notch stands for {price}, a wide one for {count} times as much.",
        "{When}, {name} lays the halves together and counts {count} notches.",
        "Nobody can add a notch to one half alone.",
        "The debt for the {goods} is paid, and the {wood} stick is burnt.",
        "What is counted twice is trusted once.",
    ],
    "words": [
        "In Greek, the sea is called θάλασσα.",
        "In Greek, the light is called φως.",
        "In Japanese, {name} says, the harbour is 港.",
        "In Japanese, the tide is 潮 and the lighthouse is 灯台.",
        "On the wall of {place} someone has written ναῦς.",
    ],
    "signs": [
        "A child draws {glyph} in the wet sand.",
        "{Name} carves {glyph} above the door.",
        "The letter from {name} ends with {glyph} and nothing else.",
        "The {colour} flag of {vessel} shows {glyph} {when}.",
        "{Name} marks the {goods} with {glyph} and {glyph}.",
    ],
}

TOPICS: dict[str, list[str]] = {
    "tide": ["tide", "tides", "sea", "water", "moon", "ocean", "beach", "wave"],
    "sailing": ["ship", "ships", "boat", "harbour", "sail", "captain", "voyage", "port"],
    "beacon": ["lighthouse", "lamp", "light", "fog", "storm", "keeper", "tower", "night"],
    "market": ["market", "price", "bread", "money", "fish", "shop", "buy", "cost"],
    "tally": ["tally", "stick", "notch", "debt", "token", "count", "payment", "ledger"],
}
"""The words in a prompt that ask for each topic."""


def alternatives(name: str) -> list[str]:
    """The alternatives of a rule; a name with a capital gives each of them one."""
    if name[0].islower():
        return RULES[name]
    return [_capital(text) for text in RULES[name.lower()]]


def expand(name: str, rng: random.Random) -> str:
    """One random text of a rule."""
    return _fill(rng.choice(alternatives(name)), rng)


def opening(topic: str, rng: random.Random) -> str:
    """The sentence that takes up a topic."""
    return _fill(rng.choice(RULES["opening"]).replace("{subject}", SUBJECTS[topic]), rng)


def paragraph(topic: str, rng: random.Random) -> str:
    """A few sentences, most of them about one topic."""
    others = ["words", "signs", "signs", "signs"]
    rules = [topic if rng.random() < 0.75 else rng.choice(others) for _ in range(rng.randint(3, 6))]
    return " ".join(expand(rule, rng) for rule in [topic, *rules])


def sentences(text: str) -> list[str]:
    """The complete sentences of a text; one that is cut off at the end is left out."""
    parts = re.split(r"(?<=[.?])\s+", text.strip())
    return [part for part in parts if part.endswith((".", "?"))]


def parses(sentence: str) -> bool:
    """Whether the grammar can write this sentence."""
    return _sentence().fullmatch(sentence) is not None


def _fill(text: str, rng: random.Random) -> str:
    return re.sub(r"{(\w+)}", lambda match: expand(match[1], rng), text)


@functools.cache
def _sentence() -> re.Pattern[str]:
    return re.compile("|".join(_pattern(topic) for topic in ["opening", *TOPICS, "words", "signs"]))


def _pattern(name: str) -> str:
    return "(?:" + "|".join(_alternative(text) for text in alternatives(name)) + ")"


def _alternative(text: str) -> str:
    parts = re.split(r"{(\w+)}", text)
    return "".join(_pattern(part) if i % 2 else re.escape(part) for i, part in enumerate(parts))


def _capital(text: str) -> str:
    at = 1 if text.startswith("{") else 0
    return text[:at] + text[at].upper() + text[at + 1 :]
