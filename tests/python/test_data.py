"""JSONL and text to samples: masks, truncation, errors with file and line, packing."""

import json

import numpy as np
import pytest

from lora_c.data import Dataset, Sample, load_dataset
from lora_c.data.batching import evaluation_batches, pack, step_batches, steps_per_epoch
from lora_c.errors import ConfigError, DataError
from lora_c.training.schedule import learning_rate


class ByteTokenizer:
    """One token per character, so that masks can be read off; chat format <role>text|."""

    bos_token_id = None
    eos_token_id = 0
    chat_template = "yes"
    special_tokens: dict = {}

    def marked_chat(self, messages, tools=None):
        return None

    def encode(self, text, add_special_tokens=False):
        return [ord(c) for c in text]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(map(chr, ids))

    def encode_with_offsets(self, text, add_special_tokens=False):
        return [ord(c) for c in text], [(i, i + 1) for i in range(len(text))]

    def apply_chat_template(self, messages, add_generation_prompt=False, tools=None):
        text = "".join(f"<{m['role'][0]}>{m['content']}|" for m in messages)
        return text + ("<a>" if add_generation_prompt else "")


class RewritingTokenizer(ByteTokenizer):
    """Drops what earlier assistant turns said, as some reasoning templates do."""

    def apply_chat_template(self, messages, add_generation_prompt=False, tools=None):
        last = len(messages) - 1
        shown = [m if i == last or m["role"] == "user" else m | {"content": "."} for i, m in enumerate(messages)]
        return super().apply_chat_template(shown, add_generation_prompt)


def write_lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def masked_text(sample):
    return "".join(chr(c) for c, m in zip(sample.input_ids, sample.loss_mask, strict=True) if m)


MESSAGES = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "ok"},
]


def test_messages_mask_every_assistant_turn_and_its_end_marker(tmp_path):
    data = load_dataset(write_lines(tmp_path / "a.jsonl", [{"messages": MESSAGES}]), ByteTokenizer())
    assert len(data) == 1
    assert masked_text(data[0]) == "yo|ok|"


def test_template_that_rewrites_history_gives_one_sample_per_turn(tmp_path):
    data = load_dataset(write_lines(tmp_path / "a.jsonl", [{"messages": MESSAGES}]), RewritingTokenizer())
    assert [masked_text(s) for s in data.samples] == ["yo|", "ok|"]
    assert "".join(map(chr, data[1].input_ids)) == "<u>hi|<a>.|<u>more|<a>ok|"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "ab", "completion": "cd"}, "cd\0"),
        ({"text": "ab"}, "ab\0"),
        ({"instruction": "do", "input": "x", "output": "y"}, "y|"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]}, "r|"),
    ],
)
def test_each_kind_masks_what_it_should(tmp_path, record, expected):
    data = load_dataset(write_lines(tmp_path / "a.jsonl", [record]), ByteTokenizer())
    assert masked_text(data[0]) == expected


def test_long_examples_are_cut_counted_and_left_out_when_no_loss_remains(tmp_path):
    records = [{"prompt": "a" * 4, "completion": "b" * 20}, {"prompt": "a" * 30, "completion": "b"}]
    data = load_dataset(write_lines(tmp_path / "a.jsonl", records), ByteTokenizer(), max_seq_length=10)
    assert (len(data), data.n_truncated, data.n_without_loss) == (1, 2, 1)
    assert masked_text(data[0]) == "b" * 6
    assert "2 cut" in data.report() and "1 left out" in data.report()


def test_text_files_are_cut_into_consecutive_pieces(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcdefghij", encoding="utf-8")
    data = load_dataset(path, ByteTokenizer(), max_seq_length=4)
    assert ["".join(map(chr, s.input_ids)) for s in data.samples] == ["abcd", "efgh", "ij"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "a.jsonl:2: expected a JSON object"),
        ("[1, 2]", "a.jsonl:2: expected a JSON object, got a list"),
        ('{"foo": 1}', "a.jsonl:2: expected 'messages'"),
        ('{"prompt": "x"}', "a.jsonl:2: expected 'completion' to be a string"),
        ('{"messages": []}', "a.jsonl:2: expected 'messages' to be a list that is not empty"),
        ('{"messages": [{"role": "user"}]}', "a.jsonl:2: expected message 0"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "a.jsonl:2: expected at least one message with the role"),
        ("[" * 100_000, "a.jsonl:2: expected"),
    ],
)
def test_bad_lines_are_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        load_dataset(path, ByteTokenizer())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_dataset(tmp_path / "none.jsonl", ByteTokenizer())
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(DataError, match="UTF-8"):
        load_dataset(tmp_path / "b.jsonl", ByteTokenizer())


def sample(n, start=0, masked=0):
    mask = np.ones(n, np.float32)
    mask[:masked] = 0
    return Sample(np.arange(start, start + n, dtype=np.int32), mask)


def test_pack_shifts_targets_inside_segments_only():
    batch = pack([sample(3, 10), sample(2, 20, masked=1)])
    assert batch.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.targets.tolist() == [11, 12, 0, 21, 0]
    assert batch.loss_weight.tolist() == [1, 1, 0, 1, 0]


def test_step_batches_cover_every_sample_once_per_epoch_and_depend_on_the_seed_only():
    data = Dataset([sample(2, 10 * i) for i in range(10)])
    seen = []
    for step in range(steps_per_epoch(10, 4)):
        epoch, batches = step_batches(data, step, batch_size=2, accumulation=2, seed=3)
        assert epoch == 0
        seen += [int(i) for b in batches for i in b.input_ids[::2]]
    assert sorted(seen) == [10 * i for i in range(10)]
    again = step_batches(data, 1, batch_size=2, accumulation=2, seed=3)[1]
    assert again[0].input_ids.tolist() == step_batches(data, 1, batch_size=2, accumulation=2, seed=3)[1][0].input_ids.tolist()
    assert step_batches(data, 3, batch_size=2, accumulation=2, seed=3)[0] == 1


def test_evaluation_batches_keep_order_and_limit():
    data = Dataset([sample(3, i) for i in range(5)])
    sizes = [b.n_tokens for b in evaluation_batches(data, 7)]
    assert sizes == [6, 6, 3]


def test_split_shares_nothing_and_keeps_everything():
    data = Dataset([sample(2, i) for i in range(20)])
    train, held_out = data.split(0.25, seed=1)
    a = {int(s.input_ids[0]) for s in train.samples}
    b = {int(s.input_ids[0]) for s in held_out.samples}
    assert len(b) == 5 and not a & b and a | b == set(range(20))


def test_a_part_of_a_sample_is_held_out_whole():
    data = Dataset([sample(2, i) for i in range(5)])
    assert [len(data.split(fraction, seed=0)[1]) for fraction in (0.01, 0.5, 0.7, 0.99)] == [1, 3, 4, 4]


def test_schedules():
    kwargs = {"peak": 1.0, "total_steps": 110, "warmup_steps": 10}
    for kind in ("linear", "cosine", "constant"):
        assert learning_rate(0, kind=kind, **kwargs) == 0.0
        assert learning_rate(5, kind=kind, **kwargs) == 0.5
        assert learning_rate(10, kind=kind, **kwargs) == 1.0
    assert learning_rate(60, kind="linear", **kwargs) == 0.5
    assert abs(learning_rate(60, kind="cosine", **kwargs) - 0.5) < 1e-12
    assert learning_rate(109, kind="constant", **kwargs) == 1.0


def test_a_limit_that_reads_nothing_and_shares_beyond_the_whole_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n' * 4)
    for limit in (0, -1):
        with pytest.raises(ConfigError, match=f"limit: expected at least 1 example, got {limit}; leave it out"):
            load_dataset(tmp_path / "a.jsonl", ByteTokenizer(), limit=limit)
    data = load_dataset(tmp_path / "a.jsonl", ByteTokenizer(), limit=3)
    for fraction in (0.0, 1.0, 1.5, -0.5):
        with pytest.raises(DataError, match=f"val_fraction: expected a share between 0 and 1, got {fraction}"):
            data.split(fraction, seed=0)
    parts = data.split(0.5, seed=0)
    assert [len(part) for part in parts] == [part.n_examples for part in parts] == [1, 2]
    assert all(part.files is data.files for part in parts)
