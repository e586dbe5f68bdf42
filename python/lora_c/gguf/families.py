"""Model families in GGUF files: what a file calls an architecture and its tensors, and how its rows lie.

What a family computes is said in `lora_c.families.architectures` alone; here stand the names and the order of a file only.
Source: gguf-py/gguf/tensor_mapping.py and the converters of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import CheckpointError

_GLOBALS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_GPT2_GLOBALS = {
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "lm_head": "output",
}  # fmt: skip
_GPT2 = {
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}  # fmt: skip
_ATTENTION = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip
_MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_LLAMA = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"} | _ATTENTION | _MLP
_SANDWICH = _LLAMA | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_PHI3 = _LLAMA | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
del _PHI3["mlp.up_proj"]


@dataclass(frozen=True)
class GGUFFamily:
    """One architecture of GGUF files.

    Attributes
    ----------
    arch, architecture, model_type : str
        general.architecture; architectures and model_type of config.json.
    layer : mapping
        Module path within a layer to the name of the tensor.
    interleaved : bool
        Rows of q and k lie in the order of interleaved rotation: pair i of a head is rows 2i and 2i + 1 instead of i and
        i + head_dim / 2.
    norm_offset : float
        What the file has added to the norm weights of the folder.
    layers, globals : str, mapping
        Path of the layers in the folder; modules that belong to no layer, as `layer`.
    """

    arch: str
    architecture: str
    model_type: str
    layer: Mapping[str, str]
    interleaved: bool = False
    norm_offset: float = 0.0
    layers: str = "model.layers"
    globals: Mapping[str, str] = field(default_factory=lambda: _GLOBALS)

    def to_file(self, name: str) -> str:
        """The file's name of a tensor of a model folder (model.layers.0.self_attn.q_proj.weight)."""
        name = name.replace("model.language_model.", "model.", 1)  # the text model of a larger one
        module, _, part = name.rpartition(".")
        if module in self.globals:
            return f"{self.globals[module]}.{part}"
        prefix, _, rest = module.removeprefix(self.layers + ".").partition(".")
        if not module.startswith(self.layers + ".") or rest not in self.layer:
            raise CheckpointError(f"{name}: expected a tensor that GGUF has a name for ({self.arch}), got this one")
        return f"blk.{prefix}.{self.layer[rest]}.{part}"

    def to_folder(self, name: str) -> str | None:
        """The folder's name of a tensor of the file; None for one that no folder has."""
        module, _, part = name.rpartition(".")
        for path, tensor in self.globals.items():
            if module == tensor:
                return f"{path}.{part}"
        prefix, _, rest = module.removeprefix("blk.").partition(".")
        found = [path for path, tensor in self.layer.items() if tensor == rest]
        return f"{self.layers}.{prefix}.{found[0]}.{part}" if found and module.startswith("blk.") else None

    def heads_key(self, name: str) -> str | None:
        """Which key of config.json counts the heads whose rows are interleaved in this tensor of a folder; None: none are."""
        if not self.interleaved:
            return None
        module = name.rpartition(".")[0]
        if module.endswith("self_attn.q_proj"):
            return "num_attention_heads"
        return "num_key_value_heads" if module.endswith("self_attn.k_proj") else None

    def offset(self, name: str) -> float:
        """What the file has added to this tensor of a folder."""
        return self.norm_offset if name.endswith("norm.weight") else 0.0


FAMILIES = (
    GGUFFamily("llama", "LlamaForCausalLM", "llama", _LLAMA, interleaved=True),
    GGUFFamily("qwen2", "Qwen2ForCausalLM", "qwen2", _LLAMA),
    GGUFFamily("qwen3", "Qwen3ForCausalLM", "qwen3", _LLAMA),
    GGUFFamily("gemma", "GemmaForCausalLM", "gemma", _LLAMA, norm_offset=1.0),
    GGUFFamily("gemma2", "Gemma2ForCausalLM", "gemma2", _SANDWICH, norm_offset=1.0),
    GGUFFamily("gemma3", "Gemma3ForCausalLM", "gemma3_text", _SANDWICH, norm_offset=1.0),
    GGUFFamily("phi3", "Phi3ForCausalLM", "phi3", _PHI3),
    GGUFFamily("olmo2", "Olmo2ForCausalLM", "olmo2", _SANDWICH),
    GGUFFamily("smollm3", "SmolLM3ForCausalLM", "smollm3", _LLAMA, interleaved=True),
    GGUFFamily("granite", "GraniteForCausalLM", "granite", _LLAMA, interleaved=True),
    GGUFFamily("gpt2", "GPT2LMHeadModel", "gpt2", _GPT2, layers="transformer.h", globals=_GPT2_GLOBALS),
)
# Families of folders that a file calls by the name of another.
ALIASES = {"MistralForCausalLM": "llama", "Gemma3ForConditionalGeneration": "gemma3"}


def family_of_arch(arch: object, where: str) -> GGUFFamily:
    """The row of general.architecture."""
    for family in FAMILIES:
        if family.arch == arch:
            return family
    known = ", ".join(family.arch for family in FAMILIES)
    raise CheckpointError(f"{where}: general.architecture: expected one of {known}, got {arch!r}")


def family_of_architecture(architecture: str) -> GGUFFamily:
    """The row that a model folder's architecture is written as."""
    for family in FAMILIES:
        if family.architecture == architecture or family.arch == ALIASES.get(architecture):
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    raise CheckpointError(f"GGUF: expected one of {known}, got {architecture}; save the model as a folder instead")
