"""Sizes, positions and numbers far beyond any machine: refused before memory is asked for, or without needing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c import ops
from lora_c._core import AdamW, Decoder, GGMLTensor, NF4Tensor, Parameter

SIZES: dict[str, Any] = dict(
    hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    vocab_size=4, max_position_embeddings=16, norm_eps=1e-5,
)  # fmt: skip
HUGE = (2**31 - 1, 2**31, 2**62, 2**63 - 1, 2**63, 2**64, 10**40)
NEGATIVE = (-1, -(2**31), -(2**63), -(2**63) - 1, -(10**40))


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


MODEL = Decoder(**SIZES)
CACHE = MODEL.new_cache(4)
A, B = Parameter(ones(2, 8)), Parameter(ones(8, 2))
TAKES: dict[str, Callable[[int], Any]] = {
    "set_num_threads": lc.set_num_threads,
    "r": lambda n: lc.LoRALinear(ones(4, 4), r=n),
    "vocab_size of embedding_backward": lambda n: ops.embedding_backward([0], ones(1, 2**12), n),
    "size of a block": lambda n: Parameter.block([(1, n if n < 0 else max(n, 2**50))]),
    "block_size": lambda n: NF4Tensor.quantize(ones(2, 64), block_size=n),
    "rows of from_parts": lambda n: NF4Tensor.from_parts(np.zeros(32, np.uint8), (n, 64), absmax=ones(1)),
    "columns of from_parts": lambda n: NF4Tensor.from_parts(np.zeros(32, np.uint8), (3, n), absmax=ones(1)),
    "rows of from_blocks": lambda n: GGMLTensor.from_blocks(np.zeros(64, np.uint8), (n, 32), "F16"),
    "columns of from_blocks": lambda n: GGMLTensor.from_blocks(np.zeros(64, np.uint8), (1, n), "Q8_0"),
    "max_tokens": lambda n: MODEL.new_cache(n),
    "n_sequences": lambda n: MODEL.new_cache(16, n if n < 0 else max(n, 2**40)),
    "sequence": lambda n: CACHE.length(n),
    "length": lambda n: CACHE.truncate(0, n),
    "truncated sequence": lambda n: CACHE.truncate(n, 0),
    "row": lambda n: MODEL.set_weight("layers.0.q_proj", ones(8, 8), row=n),
    "row of a bias": lambda n: MODEL.set_weight("layers.0.q_proj.bias", ones(16), row=n),
    "row of an adapter": lambda n: MODEL.set_adapter("layers.0.q_proj", A, B, scale=1.0, row=n),
    "row of a norm": lambda n: MODEL.set_adapter("norm", A, B, scale=1.0, row=n),
    "positions": lambda n: ops.rope(ones(1, 1, 4), [n if n < 0 else max(n, 2**31)], [1.0, 0.5]),
    "ids": lambda n: ops.embedding([n], ones(4, 8)),
    "ids of a decoder": lambda n: MODEL.decode(CACHE, [n]),
    "sequences": lambda n: MODEL.decode(CACHE, [0], sequences=[n]),
    "cu_seqlens": lambda n: ops.attention(ones(2, 1, 8), ones(2, 1, 8), ones(2, 1, 8), [0, n]),
    "step of a state": lambda n: AdamW([A]).load_state_dict(
        {"step": n if n < 0 else max(n, 2**63), "m": [A.data], "v": [A.data]}
    ),
    "sliding_window": lambda n: Decoder(**SIZES, sliding_window=n if n < 0 else max(n, 2**31)),
    "windows": lambda n: Decoder(**SIZES, sliding_window=[n if n < 0 else max(n, 2**31)]),
    "layer_rope": lambda n: Decoder(**SIZES, rope_inv_freq=[1.0], layer_rope=[n if n != -1 else -2]),
    "arena_bytes": lambda n: MODEL.arena_bytes(n if n < 0 else max(n, 2**31)),
    "scratch_bytes": lambda n: MODEL.scratch_bytes(n if n < 0 else max(n, 2**31)),
    "num_hidden_layers": lambda n: Decoder(**SIZES | {"num_hidden_layers": n}),
    "head_dim": lambda n: Decoder(**SIZES | {"head_dim": n}),
    "num_attention_heads": lambda n: Decoder(**SIZES | {"num_attention_heads": n, "num_key_value_heads": 1}),
    "num_key_value_heads": lambda n: Decoder(**SIZES | {"num_key_value_heads": n}),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKES)
def test_a_number_out_of_range_is_refused_in_one_line(name: str) -> None:
    lc.reset_peak_memory()
    before = lc.memory_report()["total"]["peak"]
    for n in (*HUGE, *NEGATIVE):
        if n == -1 and name in ("num_hidden_layers", "head_dim", "num_attention_heads", "num_key_value_heads"):
            continue  # said to be missing
        with pytest.raises((ValueError, MemoryError), match=r"^[\w., ]+: expected [^\n]+$"):
            TAKES[name](n)
    assert lc.memory_report()["total"]["peak"] < before + 2**20


@pytest.mark.parametrize("n", HUGE)
def test_sizes_of_a_decoder_need_no_memory_before_its_weights(n: int) -> None:
    for name in ("vocab_size", "max_position_embeddings", "intermediate_size", "hidden_size"):
        lc.reset_peak_memory()
        before = lc.memory_report()["total"]["peak"]
        try:
            Decoder(**SIZES | {name: min(n, 2**31 - 2)}, rope_inv_freq=[1.0, 0.5])
        except ValueError as error:
            assert "expected" in str(error)
        assert lc.memory_report()["total"]["peak"] < before + 2**20
        if n >= 2**31 - 1:
            with pytest.raises(ValueError, match=f"{name}: expected"):
                Decoder(**SIZES | {name: n})


def test_arena_and_scratch_of_any_number_of_tokens_are_counted_without_overflow() -> None:
    widest = Decoder(
        **SIZES | {name: 2**31 - 2 for name in ("intermediate_size", "hidden_size", "vocab_size", "max_position_embeddings")}
    )
    for n in (1, 2**20, 2**31 - 1):
        assert 0 < widest.arena_bytes(n) < 2**63 and 0 < widest.scratch_bytes(n) < 2**63
    assert widest.arena_bytes(2**31 - 1) > widest.arena_bytes(2**20) > widest.arena_bytes(1)


def test_a_far_position_needs_memory_for_one_row_only() -> None:
    x, freq = np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32), np.array([1.0, 0.5, 1e-9])
    lc.reset_peak_memory()
    before = lc.memory_report()["total"]["peak"]
    far = ops.rope(x, [2**31 - 1, 5, 0], freq)
    assert lc.memory_report()["total"]["peak"] < before + 2**16
    angle = np.array([2**31 - 1, 5, 0], np.float64)[:, None, None] * freq
    first, second = x[..., :3].astype(np.float64), x[..., 3:6].astype(np.float64)
    expected = np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle), x[..., 6:]], -1
    )
    assert np.allclose(far, expected, rtol=0, atol=1e-6)
    assert np.array_equal(far[1:], ops.rope(x[1:], [5, 0], freq))
    assert np.allclose(ops.rope_backward(far, [2**31 - 1, 5, 0], freq), x, rtol=0, atol=1e-6)


def test_rotations_reach_as_far_as_a_decoder_is_asked() -> None:
    """Tables grow with the positions; a pass that needed them large and one that found them so give the same bits."""
    rng = np.random.default_rng(0)

    def made() -> Decoder:
        d = Decoder(
            **SIZES | {"max_position_embeddings": 2**30, "vocab_size": 50}, rope_inv_freq=[1.0, 0.01], tie_word_embeddings=True
        )
        for name, weight in weights.items():
            d.set_weight(name, weight)
        return d

    shapes = {"embed_tokens": (50, 8), "norm": (8,)} | {
        f"layers.0.{name}": shape
        for name, shape in {
            "input_layernorm": (8,), "post_attention_layernorm": (8,), "q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8),
            "o_proj": (8, 8), "gate_proj": (12, 8), "up_proj": (12, 8), "down_proj": (8, 12),
        }.items()
    }  # fmt: skip
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    ids = rng.integers(0, 50, 5000)
    fresh, grown = made(), made()
    whole = fresh.logits(ids)
    short = grown.logits(ids[:10])
    assert np.array_equal(short, fresh.logits(ids[:10])) and np.array_equal(grown.logits(ids), whole)
    slow = made()  # meets the end of its tables in the middle of a sequence
    caches = slow.new_cache(5000), fresh.new_cache(5000)
    for begin, end in ((0, 4095), (4095, 4096), (4096, 4097), (4097, 5000)):
        assert np.array_equal(slow.decode(caches[0], ids[begin:end]), fresh.decode(caches[1], ids[begin:end]))


def test_memory_that_the_machine_does_not_have(alone: Callable[..., str]) -> None:
    code = """
import numpy as np, lora_c as lc
from lora_c import ops
have = sum(int(l.split()[1]) * 1024 for l in open("/proc/meminfo") if l.startswith(("MemAvailable", "SwapFree")))
n = have // 4 // 65536 + 2**20
tall, wide = np.ones((2**22, 1), np.float32), np.ones((1, min(n, 2**24)), np.float32)
for call in (lambda: lc.LoRALinear(wide, r=65536), lambda: ops.linear(tall, tall),
             lambda: ops.embedding_backward([0], np.ones((1, 2**12), np.float32), 2**31 - 1)):
    try: call()
    except MemoryError as e: assert ": expected" in str(e) and "\\n" not in str(e), e
    else: raise AssertionError("more memory than there is")
"""
    alone(code, gib=1024)
