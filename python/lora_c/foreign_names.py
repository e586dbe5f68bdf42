"""Names that users of transformers, PEFT, TRL, mlx-lm and others try, and what does it here."""

from __future__ import annotations

from collections.abc import Mapping

_LOAD = "lora_c.load_model(path or name)"
_LORA = "model.add_adapter(lora_c.LoraConfig(...))"
_TRAINER = "lora_c.Trainer(model, data, lora_c.TrainConfig(...)).train()"
_SAVE = "model.save(folder), of an adapter model.save_adapter(folder)"
_DEVICE = "lora_c.load_model(path, device=...) with a name of lora_c.devices(); without one it is on the CPU"

# Attributes of the package.
OF_PACKAGE: Mapping[str, str] = {
    "AutoConfig": "model.config",
    "AutoModel": _LOAD,
    "AutoModelForCausalLM": _LOAD,
    "AutoPeftModelForCausalLM": _LOAD,
    "AutoTokenizer": "model.tokenizer",
    "BitsAndBytesConfig": 'lora_c.load_model(path, quantize="nf4")',
    "DPOTrainer": _TRAINER,
    "DataCollatorForCompletionOnlyLM": "lora_c.load_dataset, which learns answers alone",
    "DataCollatorForLanguageModeling": "lora_c.load_dataset, which packs without padding",
    "DataCollatorForSeq2Seq": "lora_c.load_dataset, which packs without padding",
    "FastLanguageModel": _LOAD,
    "FastModel": _LOAD,
    "LLM": _LOAD,
    "Llama": _LOAD,
    "LoraModel": _LORA,
    "PeftConfig": "lora_c.LoraConfig",
    "PeftModel": "model.load_adapter(folder)",
    "PeftModelForCausalLM": "model.load_adapter(folder)",
    "QLoRAConfig": 'lora_c.load_model(path, quantize="nf4") with lora_c.LoraConfig',
    "LoRAConfig": "lora_c.LoraConfig",
    "SFTConfig": "lora_c.TrainConfig",
    "SFTTrainer": _TRAINER,
    "Seq2SeqTrainer": _TRAINER,
    "TaskType": 'task_type="CAUSAL_LM" or "SEQ_CLS"',
    "TextIteratorStreamer": "model.stream(prompt)",
    "TextStreamer": "model.stream(prompt)",
    "EarlyStoppingCallback": "lora_c.TrainConfig(early_stopping_patience=...)",
    "AutoModelForSequenceClassification": 'lora_c.load_model(path, task_type="SEQ_CLS", num_labels=...)',
    "DoubleSeqBnConfig": "lora_c.BottleneckConfig.houlsby()",
    "SeqBnConfig": "lora_c.BottleneckConfig.pfeiffer()",
    "PromptTuningInit": 'prompt_tuning_init="RANDOM", "TEXT" or "SAMPLE_VOCAB"',
    "PagedAdamW8bit": 'lora_c.TrainConfig(optim="paged_adamw_8bit")',
    "create_loraplus_optimizer": "lora_c.TrainConfig(loraplus_lr_ratio=...)",
    "Tokenizer": "model.tokenizer",
    "TrainerCallback": "lora_c.Callback",
    "TrainingArguments": "lora_c.TrainConfig",
    "TrainingArgs": "lora_c.TrainConfig",
    "from_pretrained": _LOAD,
    "generate": "model.generate(prompt)",
    "get_peft_model": _LORA,
    "load": _LOAD,
    "load_adapter": "model.load_adapter(folder)",
    "merge": "model.merge()",
    "pipeline": "model.generate(prompt)",
    "prepare_model_for_kbit_training": "nothing: a quantized base is ready for an adapter",
    "set_seed": "seed= of the configurations",
    "stream_generate": "model.stream(prompt)",
    "train": _TRAINER,
}

# Attributes of a model.
OF_MODEL: Mapping[str, str] = {
    "active_adapters": "model.active_adapter",
    "apply_chat_template": "model.tokenizer.apply_chat_template(messages)",
    "base_model": "with model.disable_adapter()",
    "bfloat16": 'lora_c.load_model(path, dtype="bfloat16")',
    "chat": "model.generate(messages)",
    "compile": "nothing: it is compiled",
    "cpu": _DEVICE,
    "cuda": _DEVICE,
    "disable_adapter_layers": "with model.disable_adapter()",
    "disable_adapters": "with model.disable_adapter()",
    "dtype": "model.stored_dtypes",
    "enable_adapter_layers": "model.set_adapter(name)",
    "enable_adapters": "model.set_adapter(name)",
    "enable_input_require_grads": "nothing: an adapter gets its gradients",
    "encode": "model.tokenizer.encode(text)",
    "decode": "model.tokenizer.decode(ids)",
    "eval": "nothing: dropout is for lora_c.Trainer alone",
    "train": _TRAINER,
    "fit": _TRAINER,
    "float": 'lora_c.load_model(path, dtype="float32")',
    "forward": "model.logits(text) or model.loss(text)",
    "from_pretrained": _LOAD,
    "get_base_model": "with model.disable_adapter()",
    "get_input_embeddings": 'model.dense_weight("embed_tokens")',
    "get_memory_footprint": "lora_c.memory_report()",
    "get_output_embeddings": 'model.dense_weight("lm_head")',
    "gradient_checkpointing_disable": 'lora_c.TrainConfig(recompute="none")',
    "gradient_checkpointing_enable": 'lora_c.TrainConfig(recompute="layer")',
    "half": 'lora_c.load_model(path, dtype="bfloat16")',
    "load_state_dict": _LOAD,
    "merge_and_save": "model.merge().save(folder)",
    "modules": "model.weights",
    "mps": _DEVICE,
    "name_or_path": "model.source",
    "named_modules": "model.weights",
    "named_parameters": "model.weights",
    "num_params": "model.num_parameters()",
    "parameters": "model.trainable_parameters(), all weights: model.weights",
    "peft_config": "model.adapter_config",
    "predict": "model.generate(prompt)",
    "push_to_hub": "model.save(folder), then in a shell: hf upload NAME folder",
    "requires_grad_": 'lora_c.load_model(path, trainable="full")',
    "resize_token_embeddings": "model.resize_embedding(n)",
    "save_lora": "model.save_adapter(folder)",
    "save_model": _SAVE,
    "save_pretrained": _SAVE,
    "save_pretrained_gguf": "lora-c export, in a shell",
    "save_pretrained_merged": "model.merge().save(folder)",
    "state_dict": "model.weights",
    "tie_weights": "nothing: they are tied where config.json says so",
    "to": _DEVICE,
    "tokenize": "model.tokenizer.encode(text)",
    "unload": "model.delete_adapter()",
    "vocab_size": 'model.config["vocab_size"]',
    "zero_grad": "lora_c.AdamW(model.trainable_parameters()).zero_grad()",
}


# Attributes of a trainer.
OF_TRAINER: Mapping[str, str] = {
    "add_callback": "callbacks=[...] of lora_c.Trainer",
    "args": "trainer.config",
    "eval_dataset": "trainer.eval_data",
    "get_train_dataloader": "lora_c.load_dataset, which packs without padding",
    "log": "trainer.history",
    "predict": "trainer.model.generate(prompt)",
    "push_to_hub": "model.save_adapter(folder), then in a shell: hf upload NAME folder",
    "save_model": _SAVE,
    "save_state": "save_steps= of lora_c.TrainConfig; the last state is always saved",
    "state": "trainer.history and trainer.result",
    "train_dataset": "trainer.train_data",
}


def missing(owner: str, name: str, known: Mapping[str, str]) -> str:
    """The message for an attribute that is not there: with what does it here, where the name is one that others have."""
    here = known.get(name)
    return f"{owner} has no attribute {name!r}" + (f"; here it is {here}" if here else "")
