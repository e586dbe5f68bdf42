"""README.md of a run's folder: a model card as the Hugging Face Hub reads it, from the record of the run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configs import LoraConfig
from ..configs.adapters import kind_name, parts_of
from ..display.measures import measures_of
from ..files.atomic import write_text
from ..notices import tell

if TYPE_CHECKING:
    from ..configs import TrainConfig
    from ..families.labels import Labels
    from ..training.trainer import Trainer

CARD_FILE = "README.md"
_OWN_KINDS = {"BOTTLENECK"}  # whose files PEFT does not read
_MARK = "<!-- Written by lora-c train; a later run replaces it. -->"
_SNAPSHOT = re.compile(r"models--(?P<name>[\w.-]+(--[\w.-]+)?)/snapshots/")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def write_model_card(folder: Path, trainer: Trainer, record: dict[str, Any]) -> None:
    """Write README.md, unless one of the user's own is there."""
    target = folder / CARD_FILE
    if target.exists() and _MARK not in target.read_text(encoding="utf-8", errors="replace"):
        tell(f"{target}: kept as it is, because no run wrote it")
        return
    write_text(target, model_card(folder, trainer, record))


def hub_name(base: str, config: dict[str, Any]) -> str:
    """The base model's name on the Hub, as far as its path or its config.json tells; else the name of its folder."""
    cached = _SNAPSHOT.search(os.path.realpath(base) + "/")
    if cached:
        return cached["name"].replace("--", "/", 1)
    for name in (base, config.get("_name_or_path")):
        if isinstance(name, str) and _HUB_NAME.fullmatch(name) and not os.path.exists(name):
            return name
    return re.sub(r"[^\w.-]+|--+|\.\.+", "-", Path(os.path.abspath(base)).name).strip("-.")[:96] or "base"


def model_card(folder: Path, trainer: Trainer, record: dict[str, Any]) -> str:
    """The text of the card."""
    from huggingface_hub import ModelCardData

    adapter = trainer.model.adapter_config
    kinds = [kind_name(part) for part in parts_of(adapter)]
    in_peft = not set(kinds) & _OWN_KINDS and len(kinds) < 2  # PEFT uses one at a time
    base = hub_name(record["base"]["name"], trainer.model.config)
    metadata = ModelCardData(
        base_model=base,
        base_model_relation="adapter" if adapter is not None else "finetune",
        library_name="transformers" if not kinds else "peft" if in_peft else "lora-c",
        pipeline_tag="text-generation" if trainer.model.labels is None else "text-classification",
        tags=["lora-c", *(kind.lower().replace("_", "-") for kind in kinds)],
    )
    title = os.path.basename(os.path.abspath(folder))
    shown = record["method"] if kinds in ([], ["LORA"]) else f"{' and '.join(kinds)} ({record['method']})"
    kind = f"A {shown} adapter for" if adapter is not None else f"Trained ({record['method']}) from"
    sections = [
        f"---\n{metadata.to_yaml()}\n---\n{_MARK}\n\n# {title}\n\n{kind} `{base}`.",
        "## How to use it\n\n" + _usage(adapter is not None, base, trainer.model.labels, in_peft),
        "## Training\n\n" + _table(trainer, record),
        "Everything else about the run, digests and counts included, is in `run.json`; `config.yaml` starts it again "
        "(`lora-c train --config config.yaml --output-dir again`).",
    ]
    return "\n\n".join(sections) + "\n"


def _usage(is_adapter: bool, base: str, labels: Labels | None, in_peft: bool = True) -> str:
    if labels is None:
        auto, options = "AutoModelForCausalLM", ""
        shell = '```sh\nlora-c generate --run . "Hello"\nlora-c chat --run .\n```'
    else:
        auto, options = (
            "AutoModelForSequenceClassification",
            f", num_labels={len(labels)}, problem_type={labels.problem_type!r}",
        )
        shell = '```sh\nlora-c classify --run . "Hello"\n```'
    if not is_adapter:
        return (
            f"With lora-c, in this folder:\n\n{shell}\n\nWith transformers:\n\n```python\n"
            f"from transformers import {auto}, AutoTokenizer\n\n"
            f'model = {auto}.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")\n```'
        )
    own = f"With lora-c, in this folder (`--model` says where the base is, if it has moved):\n\n{shell}"
    if not in_peft:
        return own
    return (
        f"{own}\n\nWith PEFT:\n\n"
        "```python\n"
        f"from peft import PeftModel\nfrom transformers import {auto}, AutoTokenizer\n\n"
        f'base = {auto}.from_pretrained("{base}"{options})\nmodel = PeftModel.from_pretrained(base, ".")\n'
        'tokenizer = AutoTokenizer.from_pretrained(".")\n```'
    )


def optimizer_row(config: TrainConfig) -> tuple[str, str]:
    """The optimizer and what it was given."""
    options = dict(config.optim_args)
    parts = []
    if "adamw" in config.optim or config.optim in ("lion", "muon"):
        betas = {"beta1": config.adam_beta1, "beta2": config.adam_beta2}
        if config.optim == "lion":
            betas |= {name: options.pop(name) for name in betas if name in options}
        parts.append(f"betas {betas['beta1']:g} and {betas['beta2']:g}")
    parts += [f"{name} {value}" for name, value in options.items()]
    parts.append(f"weight decay {config.weight_decay:g}")
    if config.loraplus_lr_ratio is not None:
        parts.append(f"LoRA+ ratio {config.loraplus_lr_ratio:g}")
    if config.neftune_noise_alpha is not None:
        parts.append(f"NEFTune alpha {config.neftune_noise_alpha:g}")
    given = ", ".join(parts)
    return ("AdamW", given) if config.optim == "adamw_torch" else ("optimizer", f"{config.optim}: {given}")


def _table(trainer: Trainer, record: dict[str, Any]) -> str:
    config, result = trainer.config, record.get("result") or {}
    adapter = trainer.model.adapter_config
    adapters = parts_of(adapter)
    data, held_out = record["data"], record["held_out"]
    files = ", ".join(os.path.basename(file) for file in data["files"]) or "in memory"
    rows: list[tuple[str, Any]] = [("method", record["method"])]
    labels = trainer.model.labels
    if labels is not None:
        rows += [("labels", f"{', '.join(labels.names)[:200]} ({labels.problem_type})")]
    for part in adapters:
        rows += _adapter_rows(part)
    rows += [
        ("trained parameters", f"{record['trained_parameters']:,} of {record['parameters']:,}"),
        ("data", f"{files}: {data['sequences']:,} sequences, {data['tokens_with_loss']:,} tokens with loss"),
        ("held out", f"{held_out['sequences']:,} sequences" if held_out else "nothing"),
        ("steps", f"{result.get('steps', 0):,} of {record['total_steps']:,}"),
        ("sequences per step", config.per_device_train_batch_size * config.gradient_accumulation_steps),
        ("learning rate", f"{config.learning_rate:g}, {config.lr_scheduler_type}, {trainer.warmup_steps} steps of warm-up"),
        optimizer_row(config),
        ("other options", _others(config)),
        ("longest sequence", config.max_seq_length),
        ("seed", config.seed),
        ("training loss (mean of the last tenth)", _loss(result.get("train_loss"))),
        ("held-out loss", _loss(result.get("eval_loss"))),
        ("best evaluation", _best(result.get("best"), result.get("ends_with_best"))),
        ("steps left out", f"{result['skipped']:,}" if result.get("skipped") else None),
        *((f"held-out {name}", _loss(value)) for name, value in measures_of(result).items()),
        ("time", f"{result.get('seconds', 0):,.0f} s on {record['machine']['cpu']}"),
        ("made with", f"lora-c {record['lora_c']}"),
    ]  # fmt: skip
    lines = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _others(config: TrainConfig) -> str | None:
    """What else decides the result and is not as usual."""
    fields = type(config).model_fields
    names = ("lr_scheduler_kwargs", "max_grad_norm", "skip_grad_norm", "precision")
    found = [f"{name} {getattr(config, name)}" for name in names if getattr(config, name) != fields[name].default]
    if config.method == "qlora" and config.quant_type != "nf4":
        found.append(f"base in {config.quant_type}")
    return ", ".join(found) or None


def _adapter_rows(config: Any) -> list[tuple[str, Any]]:
    """What the table says of an adapter: of LoRA its rank, of another kind its options that are set."""
    names = getattr(config, "target_modules", None)
    targets = names if isinstance(names, str) else ", ".join(names or [])
    if isinstance(config, LoraConfig):
        return [
            ("rank, alpha, dropout", f"{config.r}, {config.lora_alpha:g}, {config.lora_dropout:g}"),
            ("adapted modules", f"`{targets}`" if targets else "the family's usual ones"),
        ]
    given = config.model_dump(exclude_none=True, exclude={"seed"})
    return [(kind_name(config), ", ".join(f"{name} {value}" for name, value in given.items()))]


def _best(best: dict[str, Any] | None, is_here: bool | None) -> str | None:
    if best is None:
        return None
    here = ", whose parameters these are" if is_here else ""
    return f"{best['metric']} {best['value']:.4f} after step {best['step']:,}{here}"


def _loss(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
