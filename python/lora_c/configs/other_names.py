"""Other names of options: second names that the command line takes too, and names that only lead to the right one."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

# Option: names that mean exactly the same elsewhere. Flags and files of settings take them; Python has one name each.
SECOND_NAMES: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr",),
    "num_train_epochs": ("epochs",),
    "per_device_train_batch_size": ("batch_size",),
    "gradient_accumulation_steps": ("grad_accum",),
    "max_seq_length": ("max_length",),
    "output_dir": ("output",),
    "r": ("lora_r", "rank"),
    "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",),
    "max_new_tokens": ("max_tokens",),
    "temperature": ("temp",),
    "stop_strings": ("stop",),
    "repetition_penalty": ("repeat_penalty",),
}

# Names that people type (transformers, PEFT, TRL, mlx-lm, unsloth, axolotl, llama.cpp), and the options that do that here;
# the first one that is known where it was typed is meant. The values may be others: these names are answered, not taken.
SYNONYMS: dict[str, tuple[str, ...]] = {
    # what is read and written
    **dict.fromkeys(("model_name_or_path", "model_name", "model_path", "model_id", "base_model", "base"), ("model",)),
    **dict.fromkeys(("dataset", "dataset_name", "train_data", "train_file", "train_dataset", "file"), ("data",)),
    **dict.fromkeys(
        ("validation_data", "validation_file", "val_data", "valid_data", "eval_dataset", "eval_file", "test_data"),
        ("eval_data", "data"),
    ),
    **dict.fromkeys(("adapter_path", "adapter_dir", "adapter_name_or_path", "lora", "peft_model", "lora_path"), ("adapter",)),
    **dict.fromkeys(
        ("out", "o", "save_path", "save_dir", "outfile", "output_path", "output_file"), ("output_dir", "output", "out")
    ),
    **dict.fromkeys(("max_train_samples", "max_samples", "num_samples", "n_samples", "max_examples"), ("limit",)),
    **dict.fromkeys(("resume_from_checkpoint", "resume_from", "resume_adapter_file", "continue"), ("resume",)),
    **dict.fromkeys(("force", "overwrite_output_dir", "exist_ok"), ("overwrite",)),
    # the length of the run
    **dict.fromkeys(("epoch", "num_epochs", "n_epochs", "passes"), ("num_train_epochs",)),
    **dict.fromkeys(("steps", "iters", "iterations", "num_steps", "max_iters", "train_steps"), ("max_steps", "steps")),
    **dict.fromkeys(
        ("micro_batch_size", "batch", "bs", "train_batch_size", "batch_size"),
        ("per_device_train_batch_size", "batch", "batch_tokens"),
    ),
    **dict.fromkeys(
        (
            "accumulation",
            "accumulation_steps",
            "accumulate",
            "grad_accumulation_steps",
            "grad_accumulation",
            "grad_accum_steps",
        ),
        ("gradient_accumulation_steps",),
    ),
    **dict.fromkeys(
        (
            "max_seq_len",
            "seq_len",
            "seq_length",
            "sequence_len",
            "cutoff_len",
            "context_length",
            "ctx_size",
            "block_len",
            "model_max_length",
        ),
        ("max_seq_length", "length"),
    ),
    # the optimizer
    **dict.fromkeys(
        ("lr", "learning_rate", "lrs", "learning_rates", "rates"), ("learning_rate", "lr_max")
    ),  # lr_max: of a sweep
    **dict.fromkeys(("tasks", "metric", "metrics"), ("task", "metric_for_best_model")),
    **dict.fromkeys(("learningrate", "peak_lr", "max_lr", "step_size"), ("learning_rate",)),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule", "schedule"), ("lr_scheduler_type",)),
    "warmup": ("warmup_ratio", "warmup_steps"),
    **dict.fromkeys(("warm_up", "warmup_fraction"), ("warmup_ratio",)),
    **dict.fromkeys(("num_warmup_steps", "warmup_iters", "lr_warmup_steps"), ("warmup_steps",)),
    **dict.fromkeys(("clip", "grad_clip", "clip_grad_norm", "max_norm", "gradient_clipping"), ("max_grad_norm",)),
    **dict.fromkeys(("wd", "decay", "l2"), ("weight_decay",)),
    **dict.fromkeys(("beta1", "adam_b1"), ("adam_beta1",)),
    **dict.fromkeys(("beta2", "adam_b2"), ("adam_beta2",)),
    **dict.fromkeys(("eps", "epsilon", "adam_eps"), ("adam_epsilon",)),
    **dict.fromkeys(("random_state", "random_seed", "manual_seed", "data_seed", "rng_seed"), ("seed",)),
    # memory and speed
    **dict.fromkeys(
        (
            "gradient_checkpointing",
            "grad_checkpoint",
            "use_gradient_checkpointing",
            "checkpointing",
            "activation_checkpointing",
        ),
        ("recompute",),
    ),
    **dict.fromkeys(("load_in_4bit", "bits", "quantization", "use_4bit"), ("quantize", "method")),
    **dict.fromkeys(("load_in_8bit", "use_8bit"), ("quantize", "quant_type")),
    **dict.fromkeys(("fine_tune_type", "finetuning_type", "train_type", "mode", "use_qlora", "qlora"), ("method",)),
    **dict.fromkeys(("bf16", "fp16", "tf32", "mixed_precision"), ("precision", "dtype")),
    **dict.fromkeys(
        ("bnb_4bit_use_double_quant", "double_quantization", "use_nested_quant", "nested_quant"), ("double_quant",)
    ),
    **dict.fromkeys(("bnb_4bit_quant_type", "quantization_type"), ("quant_type", "quantize")),
    **dict.fromkeys(("gpu", "cuda", "device_map", "use_cpu"), ("device",)),
    **dict.fromkeys(("max_memory", "memory", "max_memory_gb"), ("memory_limit",)),
    # the adapter
    **dict.fromkeys(("modules", "lora_target", "lora_target_modules", "lora_target_linear", "targets"), ("target_modules",)),
    **dict.fromkeys(("lora_rank", "lora_dim", "dim"), ("r", "rank")),
    **dict.fromkeys(("r", "lora_r"), ("r", "rank")),
    "lora_modules_to_save": ("modules_to_save",),
    **dict.fromkeys(("lora_layers", "num_layers", "layers"), ("layers_to_transform",)),
    **dict.fromkeys(("rslora", "rank_stabilized"), ("use_rslora",)),
    "dora": ("use_dora",),
    **dict.fromkeys(("init", "init_lora", "init_weights"), ("init_lora_weights",)),
    # what is measured and kept
    **dict.fromkeys(
        ("eval_split", "val_split", "val_set_size", "val_size", "validation_split", "test_size", "holdout"), ("val_fraction",)
    ),
    **dict.fromkeys(("steps_per_eval", "eval_every", "eval_interval", "evaluation_steps"), ("eval_steps",)),
    **dict.fromkeys(
        ("wandb", "tensorboard", "logger", "log_with", "use_wandb", "wandb_project", "logging_dir"), ("report_to",)
    ),
    **dict.fromkeys(("save_every", "save_interval", "checkpoint_steps", "checkpoint_every"), ("save_steps",)),
    **dict.fromkeys(("keep", "keep_checkpoints", "max_checkpoints"), ("save_total_limit",)),
    **dict.fromkeys(("steps_per_report", "log_every", "log_steps", "log_interval", "report_every"), ("logging_steps",)),
    **dict.fromkeys(
        ("per_device_eval_batch_size", "eval_batch_size", "val_batch_size"), ("eval_batch_tokens", "batch_tokens")
    ),
    # text that is written
    **dict.fromkeys(
        ("max_tokens", "max_length", "n_predict", "num_predict", "num_tokens", "max_gen_len", "length", "n_tokens", "n"),
        ("max_new_tokens",),
    ),
    **dict.fromkeys(("min_tokens", "min_length"), ("min_new_tokens",)),
    **dict.fromkeys(("sample", "sampling"), ("do_sample",)),
    **dict.fromkeys(("stop_words", "stop_sequences", "reverse_prompt", "stop_sequence"), ("stop_strings",)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "rep_pen"), ("repetition_penalty",)),
    **dict.fromkeys(("system_prompt", "sys", "system_message"), ("system",)),
    **dict.fromkeys(("prompt_file", "f", "prompt_path"), ("prompts",)),
    **dict.fromkeys(("p", "text", "input"), ("prompt",)),
    "typical": ("typical_p",),
    # other formats
    **dict.fromkeys(("outtype", "q", "quant", "data_type"), ("dtype",)),
    **dict.fromkeys(("format", "target", "export_format"), ("to",)),
}


def meant(name: str, known: Collection[str]) -> str | None:
    """The known option that somebody means who types another name: by what it means, else by how it is written."""
    by_meaning = [option for option, names in SECOND_NAMES.items() if name in names and option in known]
    by_meaning += [option for option in SYNONYMS.get(name, ()) if option in known]
    near = get_close_matches(name, sorted(known), 1)
    return next(iter([*by_meaning, *near]), None)


def names_of(option: str) -> tuple[str, ...]:
    """An option's name with its second names; none where it has no second one."""
    return (option, *SECOND_NAMES[option]) if option in SECOND_NAMES else ()
