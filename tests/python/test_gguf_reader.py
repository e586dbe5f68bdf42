"""Damaged and hostile GGUF files: one clear error each, before anything large is allocated."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lora_c as lc
from lora_c.errors import CheckpointError, LoraCError
from lora_c.gguf.format import TENSOR_TYPES, Kind
from lora_c.gguf.reader import GGUFFile
from lora_c.gguf.writer import GGUFEntry, array, boolean, float32, text, uint32, write_gguf

ROOT = Path(__file__).resolve().parents[2]
BOUND = 4 << 20  # bytes of Python memory that reading a small file may take


def small_file(path: Path) -> bytes:
    """Every kind of metadata, and tensors of several types."""
    values = {
        "general.architecture": text("llama"), "s": text("ü"), "b": boolean(True), "u": uint32(7), "f": float32(0.5),
        "strings": array(["a", "", "ccc"], Kind.STRING), "flags": array([True, False], Kind.BOOL),
        "ints": array(np.arange(5), Kind.INT16), "floats": array(np.ones(3), Kind.FLOAT64),
    }  # fmt: skip
    blocks = lc.GGMLTensor.quantize(np.ones((3, 64), np.float32))
    plain = np.arange(10, dtype=np.float32)
    half = np.ones((2, 3), np.float16)
    entries = [
        GGUFEntry("plain", "F32", (2, 5), lambda: plain.reshape(2, 5)), GGUFEntry("blocks", "Q8_0", (3, 64), lambda: blocks),
        GGUFEntry("half", "F16", (2, 3), lambda: half),
    ]  # fmt: skip
    with open(path, "wb") as file:
        write_gguf(file.write, values, entries)
    return path.read_bytes()


def read_all(path: Path) -> None:
    """Everything that a file holds."""
    file = GGUFFile(path)
    for name in file.tensors:
        value = file.read(name)
        np.asarray(value if isinstance(value, np.ndarray) else value.dequantize()).sum()
    file.close()


def test_reads_what_the_writer_wrote(tmp_path: Path) -> None:
    small_file(tmp_path / "a.gguf")
    file = GGUFFile(tmp_path / "a.gguf")
    assert file.get("s") == "ü" and file.get("b") is True and file.get("u") == 7 and file.get("f") == 0.5
    assert file.get("strings") == ["a", "", "ccc"] and file.get("flags").tolist() == [True, False]
    assert file.get("ints").tolist() == [0, 1, 2, 3, 4] and file.values["floats"].item is Kind.FLOAT64
    assert file.get("nothing", 3) == 3
    plain = file.read("plain")
    assert isinstance(plain, np.ndarray) and plain.shape == (2, 5) and not plain.flags.writeable
    file.release("blocks")
    blocks = file.read("blocks")
    file.close()
    assert isinstance(blocks, lc.GGMLTensor)
    np.testing.assert_allclose(blocks.dequantize(), 1, rtol=1e-3)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = small_file(tmp_path / "a.gguf")
    for length in range(len(data) - 32):
        (tmp_path / "b.gguf").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="expected"):
            read_all(tmp_path / "b.gguf")


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def test_named_damage(tmp_path: Path) -> None:
    data = small_file(tmp_path / "a.gguf")
    info = data.index(b"blocks")  # name, dimensions, shape, type, offset
    n_dims, shape, kind, offset = info + 6, info + 10, info + 26, info + 30
    strings = data.index(b"strings") + 7
    flags = data.index(b"flags") + 5 + 4 + 4 + 8
    u64 = struct.Struct("<Q").pack
    cases: list[tuple[bytes, str]] = [
        (patched(data, 0, b"GGML"), "expected a file that begins with b'GGUF'"),
        (patched(data, 0, b"tjgg"), "older GGJT format"),
        (patched(data, 4, struct.pack("<I", 1)), "version 2 or 3, got 1"),
        (patched(data, 4, struct.pack(">I", 3)), "big-endian"),
        (patched(data, 8, u64(2**63)), "at most .* tensors in the rest of the file, got 9223372036854775808"),
        (patched(data, 16, u64(2**40)), "at most .* metadata entries"),
        (patched(data, 24, u64(2**64 - 1)), "bytes of a metadata key"),
        (patched(data, strings, struct.pack("<I", 13)), "a kind from 0 to 12"),
        (patched(data, strings + 4, struct.pack("<I", 9)), "an array of arrays"),
        (patched(data, strings + 8, u64(2**60)), "items of metadata 'strings'"),
        (patched(data, strings + 24, b"\xff"), "UTF-8 text"),
        (patched(data, flags, b"\x02"), "0 and 1 in metadata 'flags'"),
        (patched(data, data.index(u64(1) + b"u") + 8, b"f"), "each metadata key once, got .f."),
        (patched(data, info - 8, u64(1 << 20)), "tensor name"),
        (patched(data, info, b"blo\nks"), "tensor names of printable characters"),
        (patched(data, 32, b"gene\nal"), "metadata keys of printable characters"),
        (patched(data, n_dims, struct.pack("<I", 5)), "1 to 4 dimensions of blocks, got 5"),
        (patched(data, n_dims, struct.pack("<I", 0)), "1 to 4 dimensions of blocks, got 0"),
        (patched(data, shape, u64(65)), "multiple of 32 weights .Q8_0., got 65"),
        (patched(data, shape + 8, u64(0)), "sizes of at least 1"),
        (patched(data, shape + 8, u64(2**60)), "product is below"),
        (patched(data, shape + 8, u64(2**40)), "the end of this tensor"),
        (patched(data, kind, struct.pack("<I", 5)), "a tensor type that is known for blocks, got number 5"),
        (patched(data, offset, u64(1)), "multiple of 32, got 1"),
        (patched(data, offset, u64(2**63)), "the end of this tensor"),
        (patched(data, offset, u64(0)), "tensors overlap"),
    ]
    for damaged, message in cases:
        (tmp_path / "b.gguf").write_bytes(damaged)
        tracemalloc.start()
        with pytest.raises(CheckpointError, match=message):
            read_all(tmp_path / "b.gguf")
        assert tracemalloc.get_traced_memory()[1] < BOUND
        tracemalloc.stop()
    with pytest.raises(CheckpointError, match="expected a tensor 'x', got plain, blocks, half"):
        GGUFFile(tmp_path / "a.gguf").read("x")
    with pytest.raises(CheckpointError, match="expected a file, got nothing there"):
        GGUFFile(tmp_path / "none.gguf")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="at least 24 bytes"):
        GGUFFile(tmp_path / "b.gguf")


def test_a_long_key_is_told_by_its_beginning(tmp_path: Path) -> None:
    with open(tmp_path / "a.gguf", "wb") as file:
        write_gguf(file.write, {"k" * 200: uint32(7)}, [])
    data = (tmp_path / "a.gguf").read_bytes()
    kind = data.index(b"k" * 200) + 200
    told = r"metadata 'k{70}(?!k)"  # 80 characters
    for damaged in (patched(data, kind, struct.pack("<I", 99)), data[: kind + 4]):
        (tmp_path / "b.gguf").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=told):
            GGUFFile(tmp_path / "b.gguf")


def test_twice_the_same_name(tmp_path: Path) -> None:
    plain = np.zeros(4, np.float32)
    entries = [GGUFEntry(name, "F32", (4,), lambda: plain) for name in ("a", "a")]
    with open(tmp_path / "a.gguf", "wb") as file:
        write_gguf(file.write, {}, entries)
    with pytest.raises(CheckpointError, match="each tensor once"):
        GGUFFile(tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match="at most 63 bytes"):
        write_gguf(lambda data: None, {}, [GGUFEntry("n" * 64, "F32", (4,), lambda: plain)])
    with pytest.raises(CheckpointError, match="expected F32"):
        write_gguf(lambda data: None, {}, [GGUFEntry("n", "F32", (5,), lambda: plain)])


def test_scales_that_are_not_finite(tmp_path: Path) -> None:
    data = bytearray(small_file(tmp_path / "a.gguf"))
    start = GGUFFile(tmp_path / "a.gguf").tensors["blocks"].start
    data[start + 34 : start + 36] = b"\x00\x7c"
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match="blocks: w: expected finite block scales, got a NaN or an infinity in row 0"):
        read_all(tmp_path / "a.gguf")


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_gives_an_error_or_a_file(tmp_path: Path, seed: int, llama_like: Callable[[Path], bytes]) -> None:
    """The short form of make fuzz."""
    rng = random.Random(seed)
    data = llama_like(tmp_path / "a.gguf")
    header = data.index(b"ffn_norm") + 200
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = rng.randrange(header)
            damaged[at] = rng.choice([0, 255, damaged[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
        cut = len(damaged) if rng.random() < 0.8 else rng.randrange(len(damaged))
        (tmp_path / "b.gguf").write_bytes(damaged[:cut])
        tracemalloc.start()
        try:
            lc.load_model(tmp_path / "b.gguf", progress=False)
        except LoraCError as error:
            assert "\n" not in str(error) and "expected" in str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < BOUND


@pytest.fixture
def llama_like(make_model: Callable[..., Path], tmp_path: Path) -> Callable[[Path], bytes]:
    """A small Llama with a SentencePiece-like tokenizer."""

    def make(path: Path) -> bytes:
        from lora_c.gguf.models import write_model

        model = lc.load_model(make_model("base", hidden_size=32, intermediate_size=32))
        model._tokenizer = None
        write_model(tmp_path / "plain.gguf", model, "Q8_0")
        file = GGUFFile(tmp_path / "plain.gguf")
        tokens = ["<unk>", "<s>", "</s>", "▁", "a", "▁a"] + [f"t{i}" for i in range(58)]
        values = dict(file.values) | {
            "tokenizer.ggml.model": text("llama"), "tokenizer.ggml.tokens": array(tokens, Kind.STRING),
            "tokenizer.ggml.scores": array(-np.arange(64.0), Kind.FLOAT32),
            "tokenizer.ggml.token_type": array(np.array([2, 3, 3] + [1] * 61), Kind.INT32),
            "tokenizer.ggml.bos_token_id": uint32(1), "tokenizer.ggml.eos_token_id": uint32(2),
        }  # fmt: skip
        entries = []
        for name, info in file.tensors.items():
            value = file.read(name)
            entries.append(GGUFEntry(name, info.type.name, info.shape, lambda value=value: value))  # type: ignore[misc]
        with open(path, "wb") as out:
            write_gguf(out.write, values, entries)
        lc.load_model(path, progress=False)
        return path.read_bytes()

    return make


def test_types_are_those_of_the_gguf_package() -> None:
    golden = json.loads((ROOT / "tests/golden/gguf_types.json").read_text(encoding="utf-8"))
    assert [[entry.number, entry.name, entry.block, entry.size] for entry in TENSOR_TYPES.values()] == golden["types"]
    assert {kind.name: kind.value for kind in Kind} == golden["kinds"]


def test_types_have_the_sizes_of_the_extension() -> None:
    for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16"):
        entry = next(entry for entry in TENSOR_TYPES.values() if entry.name == name)
        tensor = lc.GGMLTensor.from_blocks(np.zeros(entry.size, np.uint8), (1, entry.block), name)
        assert tensor.block_size == entry.block
