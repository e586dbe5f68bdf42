"""lora-c export"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..checkpoints.model_names import find, is_hub_name, name_for_others
from ..configs import FOUR_BIT, QUANT_TYPES
from ..errors import AdapterError, CheckpointError, ConfigError
from .json_output import json_option, print_json, size_of
from .options import Command
from .paths import InputPath, output_of_a_model, refuse_inputs


@click.command("export", cls=Command, short_help="Write an adapter or a model in another format.")
@click.argument("source", type=InputPath())
@click.argument("output", type=output_of_a_model())
@click.option(
    "--to",
    "target",
    type=click.Choice(["peft", "mlx", "gguf", "hf"]),
    required=True,
    help="hf: a folder of whole weights; gguf: one file for llama.cpp, of an adapter or of a model.",
)
@click.option("--model", type=InputPath(), help="Base model of an adapter.  [default: the one that the adapter names]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16", *QUANT_TYPES]),
    metavar="TYPE",
    help="float32, float16, bfloat16; in folders nf4, fp4, fp4_e2m1, int4; in GGUF models q8_0.  [default: float32, hf: as it "
    "is, a GGUF model: float16]",
)
@json_option
def command(source: str, output: str, target: str, model: str | None, dtype: str | None, as_json: bool) -> None:
    """Write SOURCE, an adapter of any known format, a model folder or a GGUF file, to OUTPUT."""
    given, source = source, find_source(source)
    if dtype == "q8_0" and (target != "gguf" or is_adapter(source)):
        raise ConfigError("dtype: expected 'q8_0' for a model with --to gguf only, got it for another target")
    if is_adapter(source):
        base = find(model or base_of(source))
        refuse_inputs("OUTPUT", output, [("the adapter's base", base)])
        export_merged(source, base, output, dtype) if target == "hf" else export_adapter(source, base, output, target, dtype)
    elif target == "hf":
        from ..model.opening import load_model

        load_model(source).save(output, dtype=dtype)  # type: ignore[arg-type]
    elif target == "gguf":
        export_gguf(source, output, dtype or "float16")
    else:
        raise ConfigError(f"to: expected 'hf' or 'gguf' for a model, got {target!r}; only an adapter can be written as that")
    if as_json:
        print_json({"source": given, "output": output, "format": target, "dtype": dtype, "bytes": size_of(output)})
        return
    click.echo(f"exported {given}: {output} ({target})")


def find_source(name: str) -> str:
    """The path of what is exported: as given, or of a name. What a repository on the Hub is, its files say."""
    if not is_hub_name(name):
        return find(name)
    try:
        return find(name, "adapter")
    except AdapterError:
        return find(name)


def is_adapter(path: str) -> bool:
    """Whether the path is an adapter: the other thing that can be exported is a model folder."""
    from ..gguf.reader import GGUFFile, is_gguf

    if is_gguf(path):
        file = GGUFFile(path)
        try:
            return bool(file.get("general.type") == "adapter")
        finally:
            file.close()
    folder = Path(path)
    return any(folder.glob("adapter_config.json")) or (
        not (folder / "config.json").exists() and any(folder.glob("*/adapter_config.json"))
    )


def base_of(source: str) -> str:
    """The base model that an adapter names, where it is a folder here.

    Raises
    ------
    AdapterError
        It names none, or one that is not here.
    """
    from ..adapters.formats import find_folder
    from ..files.json_files import read_json_object
    from ..gguf.reader import is_gguf

    if is_gguf(source):
        raise AdapterError(f"{source}: expected the base model of a GGUF adapter, which names none; give --model PATH")
    values = read_json_object(find_folder(source) / "adapter_config.json")
    named = values.get("base_model_name_or_path") or values.get("model")
    if isinstance(named, str) and is_hub_name(named):
        return named
    if not isinstance(named, str) or not ((Path(named) / "config.json").is_file() or is_gguf(named)):
        raise AdapterError(f"{source}: expected its base model in a folder, got {named!r}; give --model PATH")
    return named


def config_of(model: str) -> dict[str, Any]:
    """The config.json of a model folder, or what it would be for a GGUF file."""
    from ..files.json_files import read_json_object
    from ..gguf.checkpoint import GGUFCheckpoint
    from ..gguf.reader import is_gguf

    if not is_gguf(model):
        return read_json_object(Path(model) / "config.json")
    with GGUFCheckpoint(model) as checkpoint:
        return checkpoint.config


def export_gguf(source: str, output: str, dtype: str) -> None:
    """Write a model as one GGUF file."""
    from ..gguf import write_model
    from ..gguf.models import TYPES
    from ..model.opening import load_model

    if dtype not in TYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(TYPES)} for a GGUF model, got {dtype!r}")
    write_model(output, load_model(source), TYPES[dtype])


def export_adapter(source: str, base: str, output: str, target: str, dtype: str | None) -> None:
    """Convert an adapter; of the base only config.json is read, unless the adapter has a base or tokens of its own."""
    from ..adapters import read_adapter, write_adapter
    from ..adapters.classifiers import labels_of_adapter
    from ..families.architectures import architecture_of, with_labels
    from ..model.loading import weights_of_folder
    from ..model.opening import load_model
    from ..model.resize_embedding import rows_of_adapter

    dtype = dtype or "float32"
    if dtype in FOUR_BIT:
        raise ConfigError(f"dtype: expected float32, float16 or bfloat16 for an adapter, got {dtype!r}")
    try:
        architecture = architecture_of(config_of(base))
    except CheckpointError as error:
        raise AdapterError(f"model: expected a GGUF file or the folder of the base model, got {base!r}: {error}") from None
    found = labels_of_adapter(source)
    if found is not None and architecture.labels is None:
        architecture = with_labels(architecture, found[0])
    has_own_rows = rows_of_adapter(architecture, source) > architecture.decoder_kwargs["vocab_size"]
    arrays = None if has_own_rows else read_adapter(source, architecture, weights_of_folder)
    if arrays is not None and not arrays.residual_base:
        write_adapter(output, arrays, architecture, base_model=name_for_others(Path(base)), dtype=dtype, format=target)
        return
    model = load_model(base)
    model.load_adapter(source, is_trainable=False)
    options: dict[str, Any] = {"dtype": dtype, "format": target}
    model.save_adapter(output, **options)


def export_merged(source: str, base: str, output: str, dtype: str | None) -> None:
    """Merge an adapter into its base."""
    from ..model.opening import load_model
    from ..text.chosen_template import use_template_of_adapter

    model = load_model(base)
    model.load_adapter(source, is_trainable=False)
    use_template_of_adapter(model, source)
    kept = model.stored_dtypes["embed_tokens"].name
    merged = model.merge(dtype=dtype or (model.quantization.quant_type if model.is_quantized else kept))  # type: ignore[arg-type]
    merged.save(output)
