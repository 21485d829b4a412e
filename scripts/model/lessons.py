"""What the network is trained on: conversations as token ids, of which only the replies count.

A reply never ends, so that a request for 150 tokens is given 150.
"""

import json
import random

import prompts
from grammar import TOPICS, expand, opening, paragraph
from tokenizer import ASSISTANT, BOS, END, SYSTEM, USER, Tokenizer

IGNORED = -100
"""The target of a token that is read and not learnt."""


class Lesson:
    """A sequence of tokens and, for each, its target."""

    def __init__(self, tokenizer: Tokenizer, length: int, rng: random.Random) -> None:
        self.tokens = [BOS]
        self.targets = [IGNORED]
        self.tokenizer = tokenizer
        self.length = length
        self.rng = rng

    def mark(self, *special: int) -> None:
        """Append special tokens; they are never learnt, so the model never writes them."""
        self.tokens += special
        self.targets += [IGNORED] * len(special)

    def read(self, text: str, most: int) -> None:
        """Append at most so many tokens of a text that is not learnt."""
        self.mark(*self.tokenizer.encode(text)[:most])

    def learn(self, text: str) -> None:
        """Append a text to be predicted."""
        tokens = self.tokenizer.encode(text)
        self.tokens += tokens
        self.targets += tokens

    def full(self) -> bool:
        """Whether there is a target for each of `length` tokens."""
        return len(self.tokens) > self.length


def lesson(tokenizer: Tokenizer, length: int, rng: random.Random) -> Lesson:
    """One training sequence."""
    made = Lesson(tokenizer, length, rng)
    rng.choices([_chat, _completion, _objects], [8, 1, 1])[0](made)
    return made


def _chat(made: Lesson) -> None:
    """A conversation whose last reply takes up its topic and never ends."""
    topic = _turns(made)
    made.learn(opening(topic, made.rng))
    _ramble(made, topic, " ")


def _completion(made: Lesson) -> None:
    """A text outside of any conversation, as the plain completion route sends it."""
    text = made.rng.choice([prompts.everyday, prompts.strange])("", made.rng)
    made.read(text.rstrip(), made.rng.randrange(made.length // 2))
    _ramble(made, made.rng.choice(list(TOPICS)), " ")


def _objects(made: Lesson) -> None:
    """JSON objects whose brace is given, as it is when the engine holds a reply to a schema."""
    topic = _turns(made)
    while not made.full():
        keys = made.rng.sample(prompts.PLAIN, made.rng.randint(1, 4))
        text = json.dumps({key: _value(topic, made.rng) for key in keys}, ensure_ascii=False)
        made.read(text[0], 1)
        made.learn(text[1:] + "\n")


def _turns(made: Lesson) -> str:
    """Some turns, up to where the last reply begins; returns the topic that it should take."""
    if made.rng.random() < 0.3:
        made.mark(SYSTEM)
        made.read(prompts.everyday("", made.rng), made.length // 2)
        made.mark(END)
    for _ in range(made.rng.randrange(made.length // 32)):
        made.learn(opening(_ask(made), made.rng))
        made.mark(END)
    return _ask(made)


def _ramble(made: Lesson, topic: str, before: str) -> None:
    """Paragraphs without end, drifting from topic to topic."""
    while not made.full():
        made.learn(before + paragraph(topic, made.rng))
        before = "\n"
        topic = topic if made.rng.random() < 0.6 else made.rng.choice(list(TOPICS))


def _ask(made: Lesson) -> str:
    """One prompt; returns the topic that it asks for, or any."""
    topic = made.rng.choice(list(TOPICS))
    kinds = [prompts.about, prompts.everyday, prompts.strange, prompts.long]
    made.mark(USER)
    made.read(made.rng.choices(kinds, [12, 2, 2, 2])[0](topic, made.rng), made.length * 3 // 4)
    made.mark(END, ASSISTANT)
    return topic


def _value(topic: str, rng: random.Random) -> object:
    words = rng.sample(prompts.PLAIN, rng.randint(1, 3))
    sentence = expand(topic, rng)
    return rng.choice([sentence, sentence, words, words[0], rng.randrange(1000), True])
