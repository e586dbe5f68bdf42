"""A seeded generator of small scenes and of questions about them.

The stories teach the base model the language of its world: who put how many of what where, which animal slept under what,
how the weather was, and remarks that look back at all this. Nothing in them is a question. The questions are the task of
the demonstration: a short scene, a question about it, a short answer, in the chat format of the base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

# fmt: off
NAMES = ("Mia", "Tom", "Ana", "Ben", "Lea", "Sam", "Eva", "Max", "Zoe", "Leo", "Ida", "Jon", "Amy", "Dan", "Nora", "Paul")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "brown", "golden")
THINGS = ("apples", "pears", "plums", "lemons", "buttons", "marbles", "ribbons", "shells", "stones", "keys", "coins", "nuts")
PLACES = ("box", "bag", "basket", "drawer", "jar", "bowl", "chest", "sack", "tin", "cup")
SIZES = ("small", "large", "young", "tall", "thin", "fat")
ANIMALS = ("cat", "dog", "fox", "hare", "owl", "goat", "frog", "hen", "mouse", "snail")
SPOTS = ("tree", "table", "bench", "bridge", "roof", "bush", "stairs", "cart")
WEATHERS = ("warm", "cold", "rainy", "windy", "foggy", "sunny", "snowy", "quiet")
TIMES = ("morning", "noon", "evening", "night", "afternoon")
WORDS = (NAMES, NUMBERS, COLOURS, THINGS, PLACES, SIZES, ANIMALS, SPOTS, WEATHERS, TIMES)

# A scene is told by one sentence of each row, in any order.
TELLING = (
    ("{name} put {number} {colour} {things} in the {place}.", "In the {place} {name} kept {number} {colour} {things}.",
     "{number} {colour} {things} lay in the {place} of {name}."),
    ("A {size} {animal} slept under the {spot}.", "Under the {spot} lay a {size} {animal}.",
     "There was a {size} {animal} under the {spot}."),
    ("It was a {weather} {time}.", "The {time} was {weather}.", "This was on a {weather} {time}."),
)
REMARKS = (
    "The {things} were {colour}.", "{name} counted the {things}: {number}.", "The {things} stayed in the {place}.",
    "The {place} was full of {things}.", "The {place} belonged to {name}.", "{name} liked the {colour} {things}.",
    "The {number} {things} were {colour}.", "The {animal} was {size}.", "The {animal} stayed under the {spot}.",
    "{name} saw the {animal}.", "Nobody else came to the {spot}.", "The rest of the {time} was {weather} too.",
    "So the {weather} {time} went by.", "The {size} {animal} never saw the {number} {things}.",
    # Statements that begin with the words of the questions, so that these words mean something to the base.
    "Who had the {things} was plain: {name}.", "How many {things} there were, {name} knew: {number}.",
    "What colour the {things} were, {name} knew: {colour}.", "Where the {things} were, {name} knew: in the {place}.",
    "What was in the {place} was plain: {number} {colour} {things}.", "Which animal was there, {name} saw: a {size} {animal}.",
    "Where the {animal} was, {name} saw: under the {spot}.", "How the weather was, {name} knew: {weather}.",
    "What time of day it was, {name} knew: {time}.",
)
QUESTIONS = (
    ("Who has the {things}?", "{name}"), ("How many {things} are there?", "{number}"),
    ("What colour are the {things}?", "{colour}"),
    ("Where are the {things}?", "in the {place}"), ("What is in the {place}?", "{number} {colour} {things}"),
    ("Which animal is there?", "a {size} {animal}"), ("Where is the {animal}?", "under the {spot}"),
    ("How is the weather?", "{weather}"), ("What time of day is it?", "{time}"),
)
# fmt: on


@dataclass(frozen=True)
class Scene:
    """Everything that is true in one story."""

    name: str
    number: str
    colour: str
    things: str
    place: str
    size: str
    animal: str
    spot: str
    weather: str
    time: str

    def say(self, pattern: str) -> str:
        text = pattern.format(**vars(self))
        return text[0].upper() + text[1:]


def scene(rng: np.random.Generator) -> Scene:
    return Scene(*(words[rng.integers(len(words))] for words in WORDS))


def telling(rng: np.random.Generator, told: Scene) -> str:
    """The first part of a story: three sentences in any order."""
    sentences = [told.say(row[rng.integers(len(row))]) for row in TELLING]
    return " ".join(sentences[i] for i in rng.permutation(len(sentences)))


def story(rng: np.random.Generator) -> str:
    """A scene, then several remarks about it."""
    told = scene(rng)
    remarks = [told.say(REMARKS[i]) for i in rng.permutation(len(REMARKS))[: rng.integers(5, 11)]]
    return " ".join([telling(rng, told), *remarks])


def stories(seed: int, n: int) -> Iterator[str]:
    """n stories; the same seed gives the same stories."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    for _ in range(n):
        yield story(rng)


def conversation(rng: np.random.Generator, n_questions: int) -> list[dict[str, str]]:
    """Messages: a scene with a first question, its answer, further questions about the same scene and their answers."""
    told = scene(rng)
    messages = []
    for i in rng.permutation(len(QUESTIONS))[:n_questions]:
        ask, answer = QUESTIONS[i]
        question = told.say(ask) if messages else f"{telling(rng, told)} {told.say(ask)}"
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer.format(**vars(told))})
    return messages


def conversations(seed: int, n: int, n_questions: int) -> list[dict[str, Any]]:
    """n examples in the messages format; no scene with its first question stands twice."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 2]))
    seen: set[str] = set()
    examples: list[dict[str, Any]] = []
    while len(examples) < n:
        messages = conversation(rng, n_questions)
        if messages[0]["content"] not in seen:
            seen.add(messages[0]["content"])
            examples.append({"messages": messages})
    return examples


def task(seed: int, n_train: int, n_held_out: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training, held-out) examples. No question of one, scene included, stands in the other.

    Training conversations ask five questions about their scene, held-out ones a single one.
    """
    held_out = conversations(2 * seed + 1, n_held_out, n_questions=1)
    told = {scene_text(example) for example in held_out}
    candidates = conversations(2 * seed, n_train + n_held_out, n_questions=5)
    train = [example for example in candidates if scene_text(example) not in told]
    return train[:n_train], held_out


def scene_text(example: dict[str, Any]) -> str:
    """The scene of a conversation, without the question behind it."""
    text: str = example["messages"][0]["content"]
    return text.rpartition(". ")[0]
