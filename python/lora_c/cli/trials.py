"""What commands with several runs share: their base is opened for each, their data are read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..configs import AdapterConfig, StackConfig, TrainConfig
from ..errors import ConfigError
from .data_options import open_data
from .train import open_model

if TYPE_CHECKING:
    from ..data import Dataset
    from ..model.model import Model


class Trials:
    """Opens bases and data as the options of a command say.

    Parameters
    ----------
    own : dict
        The options that are in no config class: model, data and how they are read.
    config : TrainConfig
        What the runs share; its seed splits the data.
    data : tuple, optional
        What `open_data` returns, where that was read already.
    task : dict, optional
        What `load_model` is told of a classifier.
    """

    def __init__(
        self, own: dict[str, Any], config: TrainConfig, data: tuple[Dataset, Dataset | None, Any] | None = None,
        task: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.own, self.config, self._data, self.task = own, config, data, task or {}

    def model(self, config: TrainConfig, adapter: AdapterConfig | StackConfig) -> Model:
        """The base of a run, with the adapter that its method has."""
        from ..text.chosen_template import use_chat_template
        from ..training.run_checks import RunOptions, check_run

        check_run(RunOptions(config, adapter))
        model = open_model(self.own, config, adapter, self.task)
        if self.own.get("chat_template"):
            use_chat_template(model, self.own["chat_template"])
        return model

    def data(self, model: Model) -> tuple[Dataset, Dataset | None]:
        """Training data and held-out data."""
        if self._data is None:
            self._data = open_data(self.own, model.tokenizer, self.config)
        return self._data[:2]


def need_inputs(own: dict[str, Any]) -> None:
    """Refuse a command without a model or data.

    Raises
    ------
    ConfigError
        Naming the option.
    """
    for key in ("model", "data"):
        if not own.get(key):
            raise ConfigError(f"{key}: expected a path, got nothing; give --{key} PATH or put {key}: in the config file")


def need_held_out(own: dict[str, Any], config: TrainConfig, what: str) -> None:
    """Refuse a comparison of runs that has no held-out data, before the model is loaded.

    Raises
    ------
    ConfigError
        With the options that bring some.
    """
    from ..data import find_files

    if own.get("eval_data") or config.val_fraction or "validation" in find_files(own["data"]).others:
        return
    raise ConfigError(
        f"eval_data: expected held-out data, by which {what} are compared, got none; give --eval-data or --val-fraction"
    )
