"""What a classifier is asked: its labels and its problem, as config.json has them, and which class of transformers it is.

The class is that of the language model with another last layer: `score`, a row for each label, read at the last token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import CheckpointError, ConfigError

ProblemType = Literal["single_label_classification", "regression", "multi_label_classification"]
PROBLEM_TYPES: tuple[str, ...] = get_args(ProblemType)
MOST_LABELS = 1 << 20
SCORE = "score.weight"
SAVED_BY_PEFT = ("classifier", "score")  # modules_to_save of every adapter with task_type SEQ_CLS
LABEL_KEYS = ("id2label", "label2id", "num_labels", "problem_type")  # of config.json
# transformers' class of each family's language model, and the one that classifies; Granite has none.
CLASSIFIERS = {
    **{
        f"{name}ForCausalLM": f"{name}ForSequenceClassification"
        for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Phi3", "Gemma", "Gemma2", "Olmo2")
    },
    "Gemma3ForCausalLM": "Gemma3TextForSequenceClassification",
    "Gemma3ForConditionalGeneration": "Gemma3ForSequenceClassification",
    "GPT2LMHeadModel": "GPT2ForSequenceClassification",
}
_LANGUAGE_MODELS = {classifier: name for name, classifier in CLASSIFIERS.items()}
_DEFAULT_LABELS = 2  # transformers leaves two labels without names of their own out of config.json


@dataclass(frozen=True)
class Labels:
    """The labels of a classifier, in the order of its logits, and what it is asked.

    Attributes
    ----------
    names : tuple of str
        One for each row of `score`; LABEL_0, LABEL_1, … where nobody has given any.
    problem_type : str
        "single_label_classification" (one of the labels), "regression" (a number for each, of which there is mostly one) or
        "multi_label_classification" (each of them or not).
    """

    names: tuple[str, ...]
    problem_type: ProblemType = "single_label_classification"

    @classmethod
    def numbered(cls, n: int, problem_type: ProblemType | None = None) -> Labels:
        """Return so many labels without names, LABEL_0, LABEL_1, …

        Parameters
        ----------
        n : int
            How many.
        problem_type : str, optional
            By default one label is asked for a number, several are those of which each text has one, as in transformers.
        """
        default: ProblemType = "regression" if n == 1 else "single_label_classification"
        return cls(tuple(f"LABEL_{i}" for i in range(n)), problem_type or default)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def are_numbered(self) -> bool:
        """Whether the names say nothing."""
        return self.names == Labels.numbered(len(self)).names

    @property
    def has_values(self) -> bool:
        """Whether the loss compares numbers with values: with all problems but the choice of one label."""
        return self.problem_type != "single_label_classification"

    def for_config(self) -> dict[str, Any]:
        """Return the keys of config.json."""
        return {
            "id2label": {str(i): name for i, name in enumerate(self.names)},
            "label2id": {name: i for i, name in enumerate(self.names)},
            "problem_type": self.problem_type,
        }

    def for_header(self) -> dict[str, str]:
        """Return what the header of an adapter's tensors says of them, in texts."""
        return {"id2label": json.dumps(self.names), "problem_type": self.problem_type}


def labels_from_options(
    num_labels: int | None, id2label: Sequence[str] | Mapping[Any, str] | Labels | None, problem_type: str | None
) -> Labels | None:
    """The labels that options give; None where they say nothing of how many there are.

    Raises
    ------
    ConfigError
        They contradict each other.
    """
    if problem_type not in (None, *PROBLEM_TYPES):
        raise ConfigError(f"problem_type: expected one of {', '.join(PROBLEM_TYPES)}, got {str(problem_type)[:60]!r}")
    if isinstance(id2label, Labels):
        id2label, problem_type = id2label.names, problem_type or id2label.problem_type
    names = None if id2label is None else _names(id2label, ConfigError, "id2label")
    if num_labels is None and names is None:
        num_labels = 1 if problem_type == "regression" else None
    if names is None and num_labels is None:
        return None
    if num_labels is not None and (type(num_labels) is not int or not 1 <= num_labels <= MOST_LABELS):
        raise ConfigError(f"num_labels: expected 1 to {MOST_LABELS:,}, got {str(num_labels)[:60]!r}")
    if names is not None and num_labels not in (None, len(names)):
        raise ConfigError(f"num_labels: expected {len(names)}, as id2label has names, got {num_labels}; leave one of them out")
    found = Labels.numbered(num_labels or len(names or ()), problem_type)  # type: ignore[arg-type]
    found = Labels(names or found.names, found.problem_type)
    _check_problem(found, ConfigError, "num_labels")
    return found


def labels_of(config: Mapping[str, Any]) -> Labels | None:
    """The labels of a classifier's config.json; None for a language model.

    Raises
    ------
    CheckpointError
        The keys cannot be, or contradict each other.
    """
    if not is_classifier(config):
        return None
    given, problem_type = config.get("id2label"), config.get("problem_type")
    if problem_type not in (None, *PROBLEM_TYPES):
        raise CheckpointError(
            f"config.json: problem_type: expected one of {', '.join(PROBLEM_TYPES)}, got {str(problem_type)[:60]!r}"
        )
    names = None if given is None else _names(given, CheckpointError, "config.json: id2label")
    n = config.get("num_labels", len(names) if names else _DEFAULT_LABELS)
    if type(n) is not int or not 1 <= n <= MOST_LABELS or (names is not None and n != len(names)):
        wanted = f"{len(names)}, as id2label has names" if names is not None else f"1 to {MOST_LABELS:,}"
        raise CheckpointError(f"config.json: num_labels: expected {wanted}, got {str(n)[:60]!r}; correct one of them")
    found = Labels.numbered(n, problem_type)
    found = Labels(names or found.names, found.problem_type)
    _check_problem(found, CheckpointError, "config.json: num_labels")
    return found


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a classifier."""
    names = config.get("architectures")
    return isinstance(names, list) and len(names) == 1 and str(names[0]) in _LANGUAGE_MODELS


def as_language_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the language model that a classifier was; any other as it is."""
    if not is_classifier(config):
        return dict(config)
    return dict(config) | {"architectures": [_LANGUAGE_MODELS[str(config["architectures"][0])]]}


def as_classifier(config: Mapping[str, Any], architecture: str, labels: Labels) -> dict[str, Any]:
    """The config.json of a classifier from a language model's.

    Parameters
    ----------
    architecture : str
        The class of the language model.

    Raises
    ------
    CheckpointError
        There is no such class, so that nobody else could read it.
    """
    if architecture not in CLASSIFIERS:
        raise CheckpointError(
            f"task_type: expected a family that transformers classifies sequences with, got {architecture}, which has no "
            f"class for it; expected one of {', '.join(CLASSIFIERS)}"
        )
    rest = {key: value for key, value in config.items() if key != "num_labels"}
    return rest | {"architectures": [CLASSIFIERS[architecture]]} | labels.for_config()


def _names(given: Any, error: type[CheckpointError] | type[ConfigError], where: str) -> tuple[str, ...]:
    """The names in the order of their numbers."""
    if isinstance(given, Mapping):
        numbered = {str(key): value for key, value in given.items()}
        missing = next((i for i in range(len(numbered)) if str(i) not in numbered), None)
        if missing is not None:
            raise error(f"{where}: expected a name for each number from 0 to {len(numbered) - 1}, got none for {missing}")
        given = [numbered[str(i)] for i in range(len(numbered))]
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise error(f"{where}: expected the names of labels, got {str(given)[:60]!r}; give a list or a mapping from numbers")
    wrong = next((name for name in given if not isinstance(name, str) or not name), None)
    if wrong is not None or len(given) > MOST_LABELS:
        got = f"{len(given):,} of them" if wrong is None else repr(wrong)[:60]
        raise error(f"{where}: expected up to {MOST_LABELS:,} names, got {got}")
    twice = next((name for name, count in _counts(given).items() if count > 1), None)
    if twice is not None:
        raise error(f"{where}: expected each name once, got {twice!r} twice")
    return tuple(given)


def _counts(names: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def _check_problem(labels: Labels, error: type[CheckpointError] | type[ConfigError], where: str) -> None:
    """One label alone cannot be chosen: its probability is 1 whatever the text says."""
    if len(labels) == 1 and not labels.has_values:
        raise error(
            f"{where}: expected 2 or more with single_label_classification, got 1; a yes or no has two labels, a number is "
            "problem_type regression"
        )
