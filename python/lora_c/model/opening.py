"""Opening a model by its path or its name."""

from __future__ import annotations

import os
import sys
from typing import Any, Literal

from ..checkpoints.config_and_files import config_of_files
from ..checkpoints.folder import Checkpoint
from ..checkpoints.model_names import find
from ..checkpoints.written import tell_adapter_beside
from ..comm.world import world
from ..configs import QuantType
from ..errors import CheckpointError
from ..families.architectures import Architecture, architecture_of
from ..families.labels import ProblemType
from ..gguf.checkpoint import GGUFCheckpoint
from ..gguf.reader import is_gguf
from ..text.tokenizer import Tokenizer
from ..weights.kinds import Weights
from ..weights.quantization import NF4, Quantization, quantization_of
from .classifier import options_of_task
from .device_list import open_device
from .load_checks import check_load_options
from .loading import DENSE_DTYPES, LoadOptions, Trainable, load_weights
from .model import Model
from .resize_embedding import rows_for
from .shared_base import share_on_node
from .wanted_task import TaskType, WantedTask, check_seed


def load_model(
    path: str | os.PathLike[str], quantize: QuantType | None = None, double_quant: bool = True, block_size: int = 64,
    dtype: Literal["float32", "bfloat16"] | None = None, progress: bool | None = None, trainable: Trainable = "none",
    resize_embedding: bool = False, revision: str | None = None, device: str | None = None, *,
    task_type: TaskType | None = None, num_labels: int | None = None, id2label: Any = None,
    problem_type: ProblemType | None = None, seed: int = 0,
) -> Model:  # fmt: skip
    """Load a Hugging Face model folder or a GGUF file, by its path or its name.

    Parameters
    ----------
    path : path or str
        A path; "demo", the small base that ships; or a name on the Hugging Face Hub such as "Qwen/Qwen3-0.6B", whose files
        are taken from the cache of huggingface_hub or brought into it. A path that is there wins.
        A folder with config.json, safetensors files and tokenizer.json; 4-bit folders of bitsandbytes are read as they are.
        Or a GGUF file (the first one of several): its blocks are used where the file is mapped.
    quantize : "nf4", "fp4", "fp4_e2m1", "int4" or "q8_0", optional
        Quantize the projections of the layers while loading, one tensor at a time: NormalFloat, bitsandbytes' FP4, the float
        E2M1, integers from -7 to 7, or the 8-bit blocks of GGUF files. A prequantized folder stays as it is, blocks of a GGUF
        file are quantized again (`requantization_error` says how much that changes).
    double_quant, block_size
        Of the 4-bit types: quantize the scales too; weights per scale.
    dtype : optional
        Convert dense matrices; by default they stay as in the file (float16 becomes float32, which loses nothing).
    progress : bool, optional
        Show a bar on standard error; by default only on a terminal.
    trainable : "none", "full" or "head"
        "full" makes every weight a float32 parameter, "head" only the head: a classifier's score, or lm_head. A head tied to
        the embedding becomes a copy of its own, and a saved folder then says `"tie_word_embeddings": false`.
    resize_embedding : bool
        Give the embedding and the head rows for tokens that only the tokenizer has, each the mean of the old rows. An
        adapter trains them with `trainable_token_indices=model.added_tokens`.
    revision : str, optional
        Branch, tag or commit of a name on the Hub.
    device : str, optional
        A name of `lora_c.devices()`, by default ``LORA_C_DEVICE`` of the environment, else "cpu". What is trained lies there.
    task_type : "CAUSAL_LM" or "SEQ_CLS", optional
        By default what the folder holds. "SEQ_CLS": a fresh `score` takes the place of a language model's head.
    num_labels, id2label, problem_type, seed : int, list or dict, str, int
        Of a fresh score, drawn by the seed: how many labels, or their names (or what `find_labels` returns), and the problem:
        "single_label_classification", "regression" (the default for one label) or "multi_label_classification".

    Raises
    ------
    CheckpointError
        The folder cannot be used; the message says which file, what was expected and what was found.
    ConfigError
        An option has a value that it cannot have, or there is no device of this name.
    DeviceError
        The device cannot be used.
    """
    check_load_options(quantize, double_quant, block_size, dtype, trainable)
    wanted = WantedTask(task_type, num_labels, id2label, problem_type)
    device = open_device(device)
    asked = Quantization(quantize, block_size, double_quant) if quantize else None
    options = LoadOptions(asked, DENSE_DTYPES.get(dtype or ""), trainable, device, check_seed(seed))
    model = _load(path, options, wanted, progress, revision, resize_embedding)
    given = dict(quantize=quantize, double_quant=double_quant, block_size=block_size, dtype=dtype, trainable=trainable)
    model.load_options = given | {"resize_embedding": resize_embedding} | options_of_task(model.labels, seed)
    return model


def _load(
    path: str | os.PathLike[str], options: LoadOptions, task: WantedTask, progress: bool | None, revision: str | None,
    resize: bool,
) -> Model:  # fmt: skip
    with open_checkpoint(path, revision, progress) as checkpoint:
        model = _model_of(checkpoint, task.config_of(config_of_checkpoint(checkpoint, options.trainable)), options, progress)
        tell_adapter_beside(checkpoint.path)
        if progress is not False:
            _report(model, path)
        if resize:
            model.resize_embedding(max(rows_for(model.tokenizer), model.architecture.decoder_kwargs["vocab_size"]))
        return model


def _model_of(
    checkpoint: Checkpoint | GGUFCheckpoint, config: dict[str, Any], options: LoadOptions, progress: bool | None
) -> Model:
    architecture = architecture_of(config)
    weights = _weights_of(checkpoint, architecture, options, progress)
    tokenizer, form = tokenizer_of_checkpoint(checkpoint, config), _quantization(weights, options.quantization)
    return Model(config, architecture, weights, checkpoint.path, tokenizer, form, device=options.device)


def _weights_of(
    checkpoint: Checkpoint | GGUFCheckpoint, architecture: Architecture, options: LoadOptions, progress: bool | None
) -> Weights:
    """The weights, which ranks on the same node hold together where nothing of them is trained."""
    comm = world()
    is_mapped = isinstance(checkpoint, GGUFCheckpoint) and options.quantization is None  # its file is what is shared
    if comm.size == 1 or options.trainable != "none" or options.device != "cpu" or is_mapped:
        return load_weights(checkpoint, architecture, options, progress)
    return share_on_node(comm, lambda: load_weights(checkpoint, architecture, options, progress))


def config_of_checkpoint(checkpoint: Checkpoint | GGUFCheckpoint, trainable: Trainable) -> dict[str, Any]:
    """A copy of the model's config.json, as its files bear it out; a head that is trained alone is tied to nothing."""
    if isinstance(checkpoint, Checkpoint):
        checkpoint.config = config_of_files(checkpoint)
    return dict(checkpoint.config) | ({"tie_word_embeddings": False} if trainable == "head" else {})


def tokenizer_of_checkpoint(checkpoint: Checkpoint | GGUFCheckpoint, config: dict[str, Any]) -> Tokenizer | None:
    """None where the folder has none: a model that is only trained on token ids needs none."""
    if isinstance(checkpoint, GGUFCheckpoint):
        return checkpoint.tokenizer()
    has_one = (checkpoint.path / "tokenizer.json").exists()
    return Tokenizer.from_folder(checkpoint.path, config) if has_one else None


def _quantization(weights: Weights, asked: Quantization | None) -> Quantization:
    """Of what is quantized in 4 bits already, else what was asked for, else of what is quantized later."""
    kinds = (quantization_of(weight) for weight in weights.values.values())
    return next((kind for kind in kinds if kind is not None and kind.is_4bit), asked or NF4)


def _report(model: Model, path: str | os.PathLike[str]) -> None:
    """What is not as somebody may expect who knows the files."""
    if model.architecture.family.text_of:
        print(f"{path}: only the text model is read, the part for images is left out", file=sys.stderr)
    if model.requantization_error is not None:
        change = 100 * model.requantization_error
        kind = model.quantization.quant_type.upper()
        print(f"Quantized again to {kind}: the weights change by {change:.2f} % (relative norm)", file=sys.stderr)


def open_checkpoint(
    path: str | os.PathLike[str], revision: str | None = None, progress: bool | None = None
) -> Checkpoint | GGUFCheckpoint:
    """Open a model folder or a GGUF file by its path or name; nothing of its weights is read."""
    path = find(path, "model", revision, progress)
    if is_gguf(path):
        return GGUFCheckpoint(path)
    if os.path.isfile(path):
        raise CheckpointError(
            f"{path}: expected a model folder or a GGUF file, got a file of another kind; give the folder of config.json"
        )
    return Checkpoint(path)
