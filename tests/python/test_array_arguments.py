"""What every function and type says to arrays that do not fit: one clear error that names the argument, inputs untouched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lora_c as lc
from lora_c import ops
from lora_c._core import AdamW, Decoder, Parameter

M, K, N = 5, 8, 6
RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


CU = np.array([0, 2, M], np.int32)
IDS = np.array([0, 3, 1, 2, 3], np.int32)
FREQ = np.array([1.0, 0.5], np.float64)
# name -> (function, array arguments by position); every float32 array among them takes part in the tests below
CALLS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "rmsnorm": (ops.rmsnorm, [f32(M, K), f32(K)]),
    "rmsnorm_backward": (ops.rmsnorm_backward, [f32(M, K), f32(M, K), f32(K)]),
    "layernorm": (ops.layernorm, [f32(M, K), f32(K), f32(K)]),
    "layernorm_backward": (ops.layernorm_backward, [f32(M, K), f32(M, K), f32(K)]),
    "rope": (ops.rope, [f32(M, 2, 4), np.arange(M, dtype=np.int32), FREQ]),
    "rope_backward": (ops.rope_backward, [f32(M, 2, 4), np.arange(M, dtype=np.int32), FREQ]),
    "attention": (ops.attention, [f32(M, 4, 8), f32(M, 2, 8), f32(M, 2, 8), CU]),
    "attention_backward": (ops.attention_backward, [f32(M, 4, 8), f32(M, 4, 8), f32(M, 2, 8), f32(M, 2, 8), CU]),
    "swiglu": (ops.swiglu, [f32(M, K), f32(M, K)]),
    "swiglu_backward": (ops.swiglu_backward, [f32(M, K), f32(M, K), f32(M, K)]),
    "geglu": (ops.geglu, [f32(M, K)]),
    "geglu_backward": (ops.geglu_backward, [f32(M, K), f32(M, K), f32(M, K)]),
    "embedding": (ops.embedding, [IDS, f32(4, K)]),
    "embedding_backward": (ops.embedding_backward, [IDS, f32(M, K), 4]),
    "linear": (ops.linear, [f32(M, K), f32(N, K), f32(N)]),
    "linear_backward": (ops.linear_backward, [f32(M, N), f32(N, K), f32(M, K)]),
    "cross_entropy": (ops.cross_entropy, [f32(M, K), f32(4, K), IDS, np.ones(M, np.float32)]),
    "sum_of_squares": (ops.sum_of_squares, [f32(K)]),
    "LoRALinear.forward": (lc.LoRALinear(f32(N, K), r=2).forward, [f32(M, K)]),
    "LoRALinear.backward": (lc.LoRALinear(f32(N, K), r=2).backward, [f32(M, N), f32(M, K)]),
    "LoRALinear": (lambda w, a, b: lc.LoRALinear(w, r=2, A=a, B=b), [f32(N, K), f32(2, K), f32(N, 2)]),
    "NF4Tensor.quantize": (lc.NF4Tensor.quantize, [f32(M, K)]),
}
FLOATS = [(n, i) for n, (_, args) in CALLS.items() for i, a in enumerate(args) if getattr(a, "dtype", None) == np.float32]
PLACES = [pytest.param(n, i, id=f"{n}-{i}") for n, i in FLOATS]


def misaligned(a: np.ndarray) -> np.ndarray:
    raw = np.empty(a.nbytes + 1, np.uint8)
    view = raw[1:].view(np.float32).reshape(a.shape)
    view[...] = a
    return view


BAD: dict[str, tuple[Callable[[np.ndarray], Any], type[Exception] | tuple[type[Exception], ...], str]] = {
    "float64": (lambda a: a.astype(np.float64), TypeError, "expected .*float32.*, got float64; use x.astype"),
    "int32": (lambda a: a.astype(np.int32), TypeError, "expected .*float32.*, got int32; use x.astype"),
    "complex": (lambda a: a.astype(np.complex64), TypeError, "expected .*float32"),
    "byte order": (lambda a: a.astype(a.dtype.newbyteorder()), TypeError, "expected native byte order"),
    "stride": (lambda a: np.repeat(a, 2, axis=-1)[..., ::2], ValueError, "expected a C-contiguous array, got strides"),
    "reversed": (lambda a: a[..., ::-1], ValueError, "expected a C-contiguous array, got strides"),
    "misaligned": (misaligned, ValueError, "expected memory aligned to 4 bytes"),
    "empty": (lambda a: a[:0], ValueError, "expected at least one element"),
    "no columns": (lambda a: a[..., :0], ValueError, "expected at least one element"),
    "scalar": (lambda a: np.float32(3), (TypeError, ValueError), "expected"),
    "list": (lambda a: a.tolist(), TypeError, "expected a .*float32.* array"),
    "text": (lambda a: "text", TypeError, "expected"),
}


@pytest.mark.parametrize(("name", "place"), PLACES)
@pytest.mark.parametrize("kind", BAD)
def test_arrays_that_do_not_fit(name: str, place: int, kind: str) -> None:
    function, args = CALLS[name]
    change, error, message = BAD[kind]
    given = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    given[place] = change(given[place])
    kept = [a.copy() if isinstance(a, np.ndarray) else a for a in given]
    with pytest.raises(error, match=rf"^\w+: {message}") as caught:
        function(*given)
    assert "\n" not in str(caught.value)
    assert all(np.array_equal(a, b) for a, b in zip(given, kept, strict=True))


# (function, argument, axis) that may be longer than in CALLS: the batch, the vocabulary, the width of an embedding.
FITS = {
    ("rmsnorm", 0, 0), ("layernorm", 0, 0), ("linear", 0, 0), ("sum_of_squares", 0, 0), ("sum_of_squares", 0, -1),
    ("LoRALinear.forward", 0, 0),
    ("NF4Tensor.quantize", 0, 0), ("NF4Tensor.quantize", 0, -1), ("embedding", 1, 0), ("embedding", 1, -1),
    ("embedding_backward", 1, -1), ("cross_entropy", 1, 0),
    ("geglu", 0, 0), ("geglu", 0, -1),
    ("rope", 0, -1), ("rope_backward", 0, -1),  # fewer frequencies than pairs turn the start of each head
}  # fmt: skip


@pytest.mark.parametrize(("name", "place"), PLACES)
@pytest.mark.parametrize("axis", [0, -1])
def test_wrong_shapes(name: str, place: int, axis: int) -> None:
    function, args = CALLS[name]
    given = list(args)
    given[place] = np.ascontiguousarray(np.concatenate([given[place]] * 2, axis=axis))
    if (name, place, axis) in FITS:
        function(*given)
        return
    with pytest.raises(ValueError, match=r"^[\w, ]+: expected"):
        function(*given)


def test_the_calls_work_when_the_arguments_fit() -> None:
    for function, args in CALLS.values():
        function(*args)


@pytest.mark.parametrize("ids", [np.array([0, 4, 1, 2, 3], np.int32), np.array([0, -1, 1, 2, 3], np.int64)])
def test_ids_out_of_range_are_named(ids: np.ndarray) -> None:
    for call in (
        lambda: ops.embedding(ids, f32(4, K)),
        lambda: ops.embedding_backward(ids, f32(M, K), 4),
        lambda: ops.cross_entropy(f32(M, K), f32(4, K), ids, np.ones(M, np.float32)),
    ):
        with pytest.raises(ValueError, match=r"expected .*, got (4|-1)\b.*1|1.*got (4|-1)"):
            call()
    with pytest.raises(TypeError, match="expected int32 or int64, got float32"):
        ops.embedding(ids.astype(np.float32), f32(4, K))
    with pytest.raises(ValueError):
        ops.embedding(np.array([2**40], np.int64), f32(4, K))


@pytest.mark.parametrize("cu", [[1, M], [0, 2], [0, 3, 2, M], [0, M + 1], [0], [0, -1, M], [2**33, M]])
def test_segments_that_do_not_fit(cu: list[int]) -> None:
    with pytest.raises(ValueError, match="cu_seqlens: expected"):
        ops.attention(f32(M, 4, 8), f32(M, 2, 8), f32(M, 2, 8), np.array(cu, np.int64))


class TestOutputs:
    layer = lc.LoRALinear(f32(K, K), r=2)

    def test_read_only(self) -> None:
        out = f32(M, K)
        out.flags.writeable = False
        for call in (
            lambda: self.layer.forward(f32(M, K), out=out),
            lambda: self.layer.backward(f32(M, K), f32(M, K), out=out),
        ):
            with pytest.raises(ValueError, match="out: expected a writable array, got a read-only one"):
                call()
        p = f32(K)
        p.flags.writeable = False
        with pytest.raises(ValueError, match="expected a writable array"):
            ops.adamw_step(p, f32(K), f32(K), f32(K), step=1, lr=1e-3)

    def test_overlap(self) -> None:
        x = f32(2 * M, K)
        for out, given in [(x[:M], x[:M]), (x[1 : M + 1], x[:M]), (x[M - 1 : 2 * M - 1], x[:M])]:
            before = x.copy()
            with pytest.raises(ValueError, match="out: expected memory apart from x, got overlapping buffers"):
                self.layer.forward(given, out=out)
            with pytest.raises(ValueError, match="out: expected memory apart from"):
                self.layer.backward(given, f32(M, K), out=out)
            assert np.array_equal(x, before)
        assert self.layer.forward(x[:M], out=x[M:]) is not None  # neighbours do not overlap
        g = f32(2 * K)
        with pytest.raises(ValueError, match="overlap"):
            ops.adamw_step(g[:K], g[1 : K + 1], f32(K), f32(K), step=1, lr=1e-3)

    @pytest.mark.parametrize(
        "out", [f32(M, K + 1), f32(M + 1, K), f32(K), np.empty((M, K)), f32(K, M).T, f32(M, 2 * K)[:, ::2]]
    )
    def test_wrong_kind(self, out: np.ndarray) -> None:
        with pytest.raises((TypeError, ValueError), match="out: expected"):
            self.layer.forward(f32(M, K), out=out)


def decoder() -> tuple[Decoder, dict[str, np.ndarray]]:
    made = Decoder(
        hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        vocab_size=4, max_position_embeddings=16, norm_eps=1e-5, rope_inv_freq=FREQ, tie_word_embeddings=True,
    )  # fmt: skip
    weights = {
        "embed_tokens": f32(4, 8), "norm": f32(8), "layers.0.input_layernorm": f32(8),
        "layers.0.post_attention_layernorm": f32(8), "layers.0.q_proj": f32(8, 8), "layers.0.k_proj": f32(4, 8),
        "layers.0.v_proj": f32(4, 8), "layers.0.o_proj": f32(8, 8), "layers.0.gate_proj": f32(12, 8),
        "layers.0.up_proj": f32(12, 8), "layers.0.down_proj": f32(8, 12),
    }  # fmt: skip
    return made, weights


class TestDecoder:
    @pytest.fixture
    def ready(self) -> Decoder:
        made, weights = decoder()
        for name, weight in weights.items():
            made.set_weight(name, weight)
        return made

    def test_missing_and_wrong_weights(self) -> None:
        made, weights = decoder()
        with pytest.raises(ValueError, match="expected"):
            made.logits(IDS)
        for name, weight, error in [
            ("layers.0.q_proj", f32(8, 9), ValueError),
            ("layers.0.q_proj", weights["layers.0.q_proj"].astype(np.float64), TypeError),
            ("layers.1.q_proj", weights["layers.0.q_proj"], ValueError),
            ("nonsense", f32(8), ValueError),
            ("norm", f32(9), ValueError),
            ("layers.0.q_proj", [[1.0]], TypeError),
        ]:
            with pytest.raises(error, match="expected"):
                made.set_weight(name, weight)

    @pytest.mark.parametrize(
        "change",
        [
            {"input_ids": np.array([0, 1, 2, 3, 4], np.int32)},
            {"input_ids": np.array([0, 1, -2, 3, 1], np.int32)},
            {"input_ids": np.arange(4, dtype=np.int32)},
            {"input_ids": np.zeros((1, M), np.int32)},
            {"targets": np.array([0, 1, 2, 3, 9], np.int32)},
            {"targets": np.zeros(3, np.int32)},
            {"loss_weight": np.ones(4, np.float32)},
            {"loss_weight": np.full(M, np.nan, np.float32)},
            {"loss_weight": np.ones(M)},
            {"cu_seqlens": np.array([0, 2, 4], np.int32)},
            {"cu_seqlens": np.array([0, 3, 2, M], np.int32)},
            {"cu_seqlens": np.array([0, M], np.float32)},
        ],
    )
    def test_batches_that_do_not_fit(self, ready: Decoder, change: dict[str, Any]) -> None:
        batch = {"input_ids": IDS, "cu_seqlens": CU, "targets": IDS, "loss_weight": np.ones(M, np.float32)}
        ready.forward_backward(*batch.values())
        batch |= change
        with pytest.raises((TypeError, ValueError), match=r"^\w+: expected"):
            ready.forward_backward(*batch.values())

    def test_longer_than_the_positions(self, ready: Decoder) -> None:
        with pytest.raises(ValueError, match="expected"):
            ready.logits(np.zeros(17, np.int32))
        with pytest.raises(ValueError, match="expected"):
            ready.decode(ready.new_cache(4), np.zeros(5, np.int32))


def test_parameters_and_optimizer() -> None:
    for given, error in [
        (f32(2, 3)[:, ::2], ValueError),
        (np.empty((0, 3), np.float32), ValueError),
        (f32(3).astype(np.int8), TypeError),
    ]:
        with pytest.raises(error, match="expected"):
            Parameter(given)
    p = Parameter(f32(3))
    for call in (
        lambda: AdamW([]),
        lambda: AdamW([f32(3)]),
        lambda: AdamW([p], lr=-1.0),
        lambda: AdamW([p], betas=(1.0, 0.9)),
    ):
        with pytest.raises((TypeError, ValueError), match="expected"):
            call()
    with pytest.raises(AttributeError, match=r"data: expected .*use p.data\[...\] = x"):
        p.data = f32(4)
    with pytest.raises((TypeError, ValueError), match="expected"):
        AdamW([p]).load_state_dict({"step": 1, "m": [f32(4)], "v": [f32(4)]})


def test_two_threads_on_one_object_are_told_apart() -> None:
    layer = lc.LoRALinear(f32(1024, 1024), r=8)
    x, outcomes = f32(2048, 1024), []
    start = threading.Barrier(2)

    def use() -> None:
        start.wait()
        for _ in range(10):
            try:
                outcomes.append(layer.forward(x).sum())
            except RuntimeError as error:
                assert "in use by another thread" in str(error)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes and all(value == outcomes[0] for value in outcomes)


def test_bfloat16_where_it_is_not_taken() -> None:
    with pytest.raises(TypeError, match="x: expected float32, got bfloat16; use x.astype"):
        ops.rmsnorm(f32(M, K).astype(ml_dtypes.bfloat16), f32(K))
