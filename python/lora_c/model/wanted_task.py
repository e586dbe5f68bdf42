"""What `load_model` is asked to make of a folder: a language model, or a classifier with these labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import ConfigError
from ..families.architectures import architecture_of
from ..families.labels import Labels, is_classifier, labels_from_options, labels_of
from .classifier import classifier_config

TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]
_MOST_SEED = 2**63


@dataclass(frozen=True)
class WantedTask:
    """The options of `load_model` by their names, checked."""

    task_type: TaskType | None = None
    num_labels: int | None = None
    id2label: Any = None
    problem_type: str | None = None

    def __post_init__(self) -> None:
        if self.task_type not in (None, *get_args(TaskType)):
            raise ConfigError(f"task_type: expected None, 'CAUSAL_LM' or 'SEQ_CLS', got {str(self.task_type)[:60]!r}")
        self._labels()

    def config_of(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config.json of the model that is wanted, from the one in its folder.

        Raises
        ------
        ConfigError
            The folder is of something else, or it says nothing of the labels and nobody else does.
        """
        if is_classifier(config):
            self._check_same(config)
            return config
        given = next((name for name in ("num_labels", "id2label", "problem_type") if getattr(self, name) is not None), None)
        if self.task_type != "SEQ_CLS":
            if given is not None:
                raise ConfigError(f"{given}: expected a classifier, got a language model; give task_type='SEQ_CLS', too")
            return config
        labels = self._labels()
        if labels is None:
            raise ConfigError(
                "num_labels: expected the number of labels for the score of a classifier, got none; give num_labels or "
                "id2label (find_labels(data) finds the names in training data)"
            )
        return classifier_config(config, architecture_of(config), labels)

    def _labels(self) -> Labels | None:
        return labels_from_options(self.num_labels, self.id2label, self.problem_type)

    def _check_same(self, config: Mapping[str, Any]) -> None:
        """The folder of a classifier says itself what it is."""
        if self.task_type == "CAUSAL_LM":
            raise ConfigError("task_type: expected SEQ_CLS for the folder of a classifier, got CAUSAL_LM; it has no lm_head")
        own, wanted = labels_of(config), self._labels()
        if own is None or wanted is None:
            return
        if len(own) != len(wanted) or own.problem_type != wanted.problem_type:
            got = f"{len(wanted)} of {wanted.problem_type}"
            raise ConfigError(
                f"num_labels: expected {len(own)} labels of {own.problem_type}, as the folder has them, got {got}; leave it "
                "out, or begin with the language model"
            )
        if not wanted.are_numbered and wanted.names != own.names:
            raise ConfigError(
                f"id2label: expected the names of the folder ({', '.join(own.names)[:80]}), got "
                f"{', '.join(wanted.names)[:80]}; leave them out"
            )


def check_seed(seed: Any) -> int:
    """The seed of a fresh score.

    Raises
    ------
    ConfigError
        It is none.
    """
    if type(seed) is not int or not 0 <= seed < _MOST_SEED:
        raise ConfigError(f"seed: expected a whole number from 0 on, got {str(seed)[:60]!r}")
    return seed
