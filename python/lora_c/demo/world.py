"""A seeded generator of small stories and of questions about them.

The stories teach the base model the language of its world: who put how many of what where, and what somebody sees on
looking there again. Nothing in them is a question. The questions are the task of the demonstration: a short story, a
question about it, a short answer, in the chat format of the base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

NAMES = ("Mia", "Tom", "Ana", "Ben", "Lea", "Sam", "Eva", "Max", "Zoe", "Leo", "Ida", "Jon", "Amy", "Dan", "Nora", "Paul")
THINGS = (
    "apple",
    "pear",
    "plum",
    "lemon",
    "button",
    "marble",
    "ribbon",
    "shell",
    "stone",
    "key",
    "coin",
    "nut",
    "bean",
    "feather",
)
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "brown", "golden")
PLACES = ("box", "bag", "basket", "drawer", "jar", "bowl", "chest", "sack", "tin", "cup")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
PUT = ("{name} put {things} in the {place}.", "{name} has {things} in the {place}.", "In the {place} {name} keeps {things}.")
LOOK = (
    "{name} looked in the {place} and saw {things}.",
    "There were {things} in the {place}.",
    "The {thing} in the {place} {be} {colour}.",
    "{name} counted the {thing}: {number}.",
    "The {thing} of {name} {be} in the {place}.",
    "The {place} belongs to {name}.",
    "The {colour} {thing} belong to {name}.",
    "{number} {colour} {thing} were in the {place} of {name}.",
)
FILLER = (
    "It was a quiet morning.",
    "The rain had stopped.",
    "A bird sang in the garden.",
    "The day was warm.",
    "Nobody was at the door.",
    "The clock struck noon.",
)


@dataclass(frozen=True)
class Fact:
    """Who keeps how many of what in which place."""

    name: str
    number: str
    colour: str
    thing: str
    place: str

    @property
    def things(self) -> str:
        return f"{self.number} {self.colour} {self.plural}"

    @property
    def plural(self) -> str:
        return self.thing if self.number == "one" else self.thing + "s"

    def tell(self, pattern: str) -> str:
        text = pattern.format(
            name=self.name,
            number=self.number,
            colour=self.colour,
            thing=self.plural,
            things=self.things,
            place=self.place,
            be="is" if self.number == "one" else "are",
        )
        return text[0].upper() + text[1:]


def facts(rng: np.random.Generator, n: int) -> list[Fact]:
    """n facts that share no name, thing, colour, number or place, so that each question has one answer."""
    names = rng.permutation(len(NAMES))[:n]
    numbers = rng.permutation(len(NUMBERS) - 1)[:n] + 1
    colours = rng.permutation(len(COLOURS))[:n]
    things = rng.permutation(len(THINGS))[:n]
    places = rng.permutation(len(PLACES))[:n]
    return [
        Fact(NAMES[a], NUMBERS[b], COLOURS[c], THINGS[d], PLACES[e])
        for a, b, c, d, e in zip(names, numbers, colours, things, places, strict=True)
    ]


def telling(rng: np.random.Generator, told: list[Fact]) -> str:
    """The first part of a story: every fact once, in order."""
    return " ".join(fact.tell(PUT[rng.integers(len(PUT))]) for fact in told)


def story(rng: np.random.Generator) -> str:
    """Two to four facts, then several looks back at them in any order."""
    told = facts(rng, int(rng.integers(2, 5)))
    parts = [telling(rng, told)]
    if rng.random() < 0.5:
        parts.append(FILLER[rng.integers(len(FILLER))])
    for _ in range(int(rng.integers(3, 7))):
        fact = told[rng.integers(len(told))]
        parts.append(fact.tell(LOOK[rng.integers(len(LOOK))]))
    return " ".join(parts)


def stories(seed: int, n: int) -> Iterator[str]:
    """n stories; the same seed gives the same stories."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    for _ in range(n):
        yield story(rng)


def question(rng: np.random.Generator, told: list[Fact]) -> tuple[str, str]:
    """(question, answer) about one of the facts."""
    fact = told[rng.integers(len(told))]
    thing = fact.thing + "s"
    choices = (
        (f"How many {thing} does {fact.name} have?", fact.number),
        (f"Where are the {thing}?", f"in the {fact.place}"),
        (f"Who has the {thing}?", fact.name),
        (f"What colour are the {thing} in the {fact.place}?", fact.colour),
        (f"What is in the {fact.place}?", fact.things),
    )
    return choices[rng.integers(len(choices))]


def conversations(seed: int, n: int) -> list[dict[str, list[dict[str, str]]]]:
    """n different examples in the messages format: a story of two or three facts, a question, the answer."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 2]))
    seen: set[str] = set()
    examples: list[dict[str, list[dict[str, str]]]] = []
    while len(examples) < n:
        told = facts(rng, int(rng.integers(2, 4)))
        text = telling(rng, told)
        ask, answer = question(rng, told)
        prompt = f"{text} {ask}"
        if prompt in seen:
            continue
        seen.add(prompt)
        examples.append({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]})
    return examples


def task(seed: int, n_train: int, n_held_out: int) -> tuple[list[dict], list[dict]]:
    """(training, held-out) examples that share no question text."""
    examples = conversations(seed, n_train + n_held_out)
    return examples[:n_train], examples[n_train:]
