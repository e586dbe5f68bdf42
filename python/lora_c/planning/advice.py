"""What follows from a run's data for its options.

Source: J. Schulman and others, LoRA Without Regret, 2025 (thinkingmachines.ai/blog/lora): LoRA learns as full fine-tuning
does while its parameters hold what the data say, on all matrices, and with small batches; QLoRA, arXiv:2305.14314, section 4,
for all linear layers.
"""

from __future__ import annotations

from ..configs import LoraConfig
from ..families.table import MLP
from .subject import Subject

LARGEST_BATCH = 32  # sequences of a step
BITS_PER_PARAMETER = 2.0  # that a model can hold: Allen-Zhu and Li, arXiv:2404.05405


def advice(subject: Subject, tokens_to_learn: int | None) -> list[str]:
    """Sentences, each with the numbers that it follows from.

    Parameters
    ----------
    tokens_to_learn : int or None
        Tokens with loss in the data, each once; about one bit is to be learned of each.
    """
    config, said = subject.config, []
    trained = subject.model.num_parameters(only_trainable=True)
    if isinstance(subject.adapter, LoraConfig):
        if tokens_to_learn is not None:
            said.append(_capacity(trained, tokens_to_learn, subject.adapter.r))
        if (line := _targets(subject, subject.adapter)) is not None:
            said.append(line)
    sequences = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if subject.model.adapter is not None and sequences >= LARGEST_BATCH:
        said.append(
            f"a step has {sequences:,} sequences: adapters lose more with large batches than full fine-tuning does; stay "
            f"below {LARGEST_BATCH}"
        )
    return said


def _capacity(trained: int, tokens: int, r: int) -> str:
    holds = trained * BITS_PER_PARAMETER
    what = f"{trained:,} trained parameters hold about {holds:,.0f} bits, {tokens:,} tokens to learn say about "
    what += f"{tokens:,} bits (one each)"
    if tokens <= holds:
        return f"{what}: rank {r} is enough"
    wanted = r
    while trained / r * wanted * BITS_PER_PARAMETER < tokens:
        wanted *= 2
    return f"{what}: more than they hold; r={wanted} does, or full fine-tuning"


def _targets(subject: Subject, adapter: LoraConfig) -> str | None:
    if adapter.target_modules == "all-linear":
        return None
    adapted = {name.rpartition(".")[2] for name in subject.model.adapters}
    if adapted & {*MLP, "gate_up_proj", "c_fc"}:
        return None
    return (
        f"only {', '.join(sorted(adapted))} are adapted: at the same number of parameters all linear layers learn more, those "
        "of the MLP most of all; --target-modules all-linear with a smaller r"
    )
