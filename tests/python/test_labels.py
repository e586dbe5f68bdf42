"""Labels: in config.json, as options, in data; texts as a classifier reads them; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors

import lora_c as lc
from lora_c.data import Sample
from lora_c.families.labels import Labels, labels_from_options, labels_of
from lora_c.text.sequences import sequence_ids

CLASSIFIER = {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"}
RECORDS = [{"text": "w3 w4 w5", "label": "yes"}, {"text": "w6 w7", "label": "no"}, {"text": "w8", "label": "yes"}]


@pytest.fixture
def base(make_model: Callable[..., Path]) -> Path:
    return make_model("base")


@pytest.fixture
def model(base: Path) -> lc.Model:
    return lc.load_model(base, task_type="SEQ_CLS", id2label=["no", "yes"], progress=False)


# --- config.json ---


def test_config_of_transformers() -> None:
    assert labels_of({"architectures": ["LlamaForCausalLM"], "id2label": {"0": "x"}}) is None
    assert labels_of(CLASSIFIER) == Labels(("LABEL_0", "LABEL_1"))  # transformers leaves two labels out
    named = CLASSIFIER | {"id2label": {"1": "b", "0": "a", "2": "c"}, "problem_type": "multi_label_classification"}
    assert labels_of(named) == Labels(("a", "b", "c"), "multi_label_classification")
    assert labels_of(CLASSIFIER | {"num_labels": 1}) == Labels(("LABEL_0",), "regression")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "a name for each number from 0 to 1, got none for 1"),
        ({"id2label": {"0": "a", "1": "a"}}, "each name once, got 'a' twice"),
        ({"id2label": {"0": "a", "1": 5}}, "names, got 5"),
        ({"id2label": "a,b"}, "expected the names of labels, got 'a,b'"),
        ({"id2label": {}}, "expected the names of labels"),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, "num_labels: expected 2, as id2label has names, got '3'"),
        ({"num_labels": 10**9}, "num_labels: expected 1 to 1,048,576"),
        ({"num_labels": True}, "num_labels: expected 1 to"),
        ({"num_labels": 1, "problem_type": "single_label_classification"}, "expected 2 or more"),
        ({"problem_type": "ranking"}, "problem_type: expected one of single_label_classification"),
    ],
)
def test_configs_that_cannot_be(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(lc.CheckpointError, match=f"config.json: .*{said}"):
        labels_of(CLASSIFIER | keys)


def test_another_class_is_refused(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(lc.CheckpointError, match="or the class of one of them for SequenceClassification"):
        lc.load_model(folder)
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(lc.CheckpointError, match=r"got none for score\.weight"):
        lc.load_model(folder)


# --- options ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task_type": "SEQ_CLS"}, "num_labels: expected the number of labels"),
        ({"task_type": "TOKEN_CLS", "num_labels": 2}, "task_type: expected None, 'CAUSAL_LM' or 'SEQ_CLS', got 'TOKEN_CLS'"),
        ({"num_labels": 3}, "num_labels: expected a classifier, got a language model; give task_type='SEQ_CLS'"),
        ({"task_type": "SEQ_CLS", "num_labels": 1, "problem_type": "single_label_classification"}, "expected 2 or more"),
        ({"task_type": "SEQ_CLS", "num_labels": 3, "id2label": ["a", "b"]}, "num_labels: expected 2, as id2label has names"),
        ({"task_type": "SEQ_CLS", "num_labels": 0}, "num_labels: expected 1 to"),
        ({"task_type": "SEQ_CLS", "num_labels": True}, "num_labels: expected 1 to"),
        ({"task_type": "SEQ_CLS", "num_labels": 2.0}, "num_labels: expected 1 to"),
        ({"task_type": "SEQ_CLS", "id2label": ["a", "a"]}, "id2label: expected each name once"),
        ({"task_type": "SEQ_CLS", "id2label": "ab"}, "id2label: expected the names of labels, got 'ab'"),
        ({"task_type": "SEQ_CLS", "id2label": {0: "a", 2: "b"}}, "got none for 1"),
        ({"task_type": "SEQ_CLS", "num_labels": 2, "problem_type": "both"}, "problem_type: expected one of"),
        ({"task_type": "SEQ_CLS", "num_labels": 2, "seed": -1}, "seed: expected a whole number"),
    ],
)
def test_options_that_cannot_be(base: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(lc.ConfigError, match=said):
        lc.load_model(base, progress=False, **options)


def test_the_folder_of_a_classifier_says_what_it_is(model: lc.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "c")
    again = lc.load_model(tmp_path / "c", progress=False)
    assert again.labels == Labels(("no", "yes")) and repr(again).startswith("Model(LlamaForSequenceClassification")
    assert np.array_equal(again.weights["lm_head"], model.weights["lm_head"])
    assert lc.load_model(tmp_path / "c", task_type="SEQ_CLS", num_labels=2, progress=False).labels == again.labels
    for options, said in (
        ({"task_type": "CAUSAL_LM"}, "task_type: expected SEQ_CLS for the folder of a classifier"),
        ({"task_type": "SEQ_CLS", "num_labels": 3}, "num_labels: expected 2 labels"),
        ({"task_type": "SEQ_CLS", "id2label": ["yes", "no"]}, "id2label: expected the names of the folder"),
    ):
        with pytest.raises(lc.ConfigError, match=said):
            lc.load_model(tmp_path / "c", progress=False, **options)  # type: ignore[arg-type]


def test_a_fresh_score(make_model: Callable[..., Path]) -> None:
    folder = make_model(initializer_range=0.5, hidden_size=32)
    scores = [
        lc.load_model(folder, task_type="SEQ_CLS", num_labels=50, seed=s, progress=False).weights["lm_head"] for s in (1, 1, 2)
    ]
    assert np.array_equal(scores[0], scores[1]) and not np.array_equal(scores[0], scores[2])
    assert scores[0].std() == pytest.approx(0.5, rel=0.05) and abs(scores[0].mean()) < 0.05
    config = json.loads((folder / "config.json").read_text()) | {"initializer_range": "wide"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(lc.CheckpointError, match="initializer_range: expected a number"):
        lc.load_model(folder, task_type="SEQ_CLS", num_labels=2, progress=False)


def test_a_tied_base_and_one_with_a_head(make_model: Callable[..., Path]) -> None:
    tied = lc.load_model(
        make_model("tied", tie_word_embeddings=True), task_type="SEQ_CLS", num_labels=2, trainable="full", progress=False
    )
    assert tied.weights["lm_head"].shape == (2, 32) and not tied.architecture.tied
    assert tied.num_parameters(only_trainable=True) == tied.num_parameters()
    quantized = lc.load_model(
        make_model("own"), quantize="nf4", block_size=32, task_type="SEQ_CLS", num_labels=3, progress=False
    )
    assert quantized.is_quantized and isinstance(quantized.weights["lm_head"], np.ndarray)


def test_a_family_without_such_a_class(make_model: Callable[..., Path]) -> None:
    folder = make_model(
        architectures=["GraniteForCausalLM"], model_type="granite", embedding_multiplier=1.0, residual_multiplier=1.0,
        attention_multiplier=1.0, logits_scaling=1.0,
    )  # fmt: skip
    with pytest.raises(lc.CheckpointError, match="got GraniteForCausalLM, which has no class for it"):
        lc.load_model(folder, task_type="SEQ_CLS", num_labels=2, progress=False)


def test_the_task_of_an_adapter(base: Path, model: lc.Model) -> None:
    with pytest.raises(lc.AdapterError, match="task_type: expected CAUSAL_LM for a language model, got SEQ_CLS"):
        lc.load_model(base, progress=False).add_adapter(lc.LoraConfig(task_type="SEQ_CLS"))
    with pytest.raises(lc.AdapterError, match="task_type: expected SEQ_CLS for a classifier, got CAUSAL_LM"):
        model.add_adapter(lc.LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(lc.ConfigError, match="task_type"):
        lc.LoraConfig(task_type="SEQ_2_SEQ_LM")  # type: ignore[arg-type]
    model.add_adapter(lc.LoraConfig(r=2, modules_to_save=["norm"]))
    assert model.adapter_config is not None
    assert model.adapter_config.task_type == "SEQ_CLS" and model.adapter_config.modules_to_save == [
        "norm",
        "classifier",
        "score",
    ]
    assert "base_model.model.score.weight" in [p.name for p in model.trainable_parameters()]


# --- labels in data ---


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (["b", "a", "b"], Labels(("a", "b"))),
        ([2, 0], Labels.numbered(3)),
        (["2", "0"], Labels.numbered(3)),  # a table has texts alone
        ([np.int64(1), 0], Labels.numbered(2)),
        ([0.5, 2], Labels.numbered(1, "regression")),
        (["0.5", "2"], Labels.numbered(1, "regression")),
        (["a", "1"], Labels(("1", "a"))),
        ([["x", "y"], [], ["w"]], Labels(("w", "x", "y"), "multi_label_classification")),
        ([[1, 0, 1], [0, 0, 0]], Labels.numbered(3, "multi_label_classification")),
        ([[1.5, 0], [0, 2]], Labels.numbered(2, "regression")),
    ],
)
def test_labels_that_are_found(labels: list[Any], wanted: Labels) -> None:
    assert lc.find_labels([{"text": "x", "label": label} for label in labels]) == wanted


def test_labels_of_files_and_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sentence,class\nhello,pos\nbye,neg\n")
    assert lc.find_labels(tmp_path / "a.csv", columns="text=sentence,label=class").names == ("neg", "pos")
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": 3}\n{"text": "b", "label": 0}\n')
    assert len(lc.find_labels([tmp_path / "b.jsonl"])) == 4
    assert lc.find_labels(tmp_path / "b.jsonl", problem_type="regression") == Labels.numbered(1)
    assert lc.find_labels([*RECORDS, {"text": "x", "label": "more"}], limit=3).names == ("no", "yes")


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (iter([]), "expected at least one record with a label, got none"),
        ([{"text": "x", "label": "a"}], "expected two labels or more, got a alone"),
        ([{"text": "x", "label": 0}], "expected labels of two kinds or more"),
        ([{"text": "x", "label": 10**9}], "expected labels of two kinds or more, numbered from 0 to 1,048,575"),
        ([{"text": "x", "label": -1}, {"text": "x", "label": "1"}], None),
        ([{"text": "x"}], "record 1: expected 'label' to say what the text is, got the keys"),
        ([{"text": "x", "label": None}], "record 1: expected 'label' to say what the text is, got nothing"),
        ([{"text": "x", "label": ""}], "got nothing"),
        ([{"sentence": "x", "gold": "a"}], "--columns text=sentence,label=gold"),
        (
            [{"text": "x", "label": "a"}, {"text": "x", "label": 1}],
            "labels of one kind, got names .record 1. and numbers .record 2.",
        ),
        ([{"text": "x", "label": {"a": 1}}], "a name, a number or a list of them"),
        ([{"text": "x", "label": True}], "a name, a number or a list of them, got True"),
        ([{"text": "x", "label": float("nan")}], "a name, a number or a list of them, got nan"),
        ([{"text": "x", "label": ["a", 1]}], "a list of names or of numbers"),
        ([{"text": "x", "label": [1, 0]}, {"text": "x", "label": [1]}], "lists of one length as labels, got some of 1 and 2"),
    ],
)
def test_labels_that_are_refused(records: list[dict[str, Any]], said: str | None) -> None:
    if said is None:  # a number below 0 is a value
        assert lc.find_labels(records).problem_type == "regression"
        return
    with pytest.raises(lc.DataError, match=said):
        lc.find_labels(records)


def test_texts_have_no_labels(tmp_path: Path, model: lc.Model) -> None:
    (tmp_path / "a.txt").write_text("w3 w4")
    for read in (lambda: lc.find_labels(tmp_path / "a.txt"), lambda: lc.load_dataset(tmp_path / "a.txt", model.tokenizer)):
        with pytest.raises(lc.DataError, match=r"a\.txt: expected records with 'text' and 'label'"):
            read()


# --- records ---


def test_records_become_samples(model: lc.Model) -> None:
    data = lc.load_dataset(RECORDS, model.tokenizer)
    assert [list(s.input_ids) for s in data] == [[3, 4, 5], [6, 7], [8]]  # no end: the tokenizer adds none
    assert [s.label for s in data] == [1, 0, 1] and data.n_predicted == 3
    numbers = lc.load_dataset([{"text": "w3", "label": 1}, {"text": "w3", "label": "0"}], model.tokenizer)
    assert [s.label for s in numbers] == [1, 0]


def test_columns_of_other_names(model: lc.Model, base: Path, tmp_path: Path) -> None:
    records = [{"premise": "w3 w4", "hypothesis": "w5", "gold": "yes", "text": "w9"}]
    columns = {"text": "premise", "text_pair": "hypothesis", "label": "gold"}
    (sample,) = lc.load_dataset(records, model.tokenizer, columns=columns)
    assert list(sample.input_ids) == [3, 4, 5] and sample.label == 1
    with pytest.raises(lc.DataError, match="columns: expected the column 'gold' for 'label'"):
        lc.load_dataset([{"premise": "w3", "hypothesis": "w4"}], model.tokenizer, columns=columns)
    language = lc.load_model(base, progress=False)
    with pytest.raises(lc.ConfigError, match="columns: expected no 'text_pair' for a language model"):
        lc.load_dataset(records, language.tokenizer, columns=columns)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": "w3"}, "record 1: expected 'label' beside 'text'"),
        ({"label": 1}, "expected 'text' to be a string, got the keys"),
        ({"text": 5, "label": 1}, "expected 'text' to be a string, got a int"),
        ({"text": "w3", "text_pair": 5, "label": 1}, "expected 'text_pair' to be a string, got a int"),
        ({"text": "", "label": 1}, "at least one token, got an empty one"),
        ({"text": "\ud800", "label": 1}, "lone surrogate"),
        ({"text": "w3", "label": "maybe"}, "expected 'label' to be one of no, yes or its number, 0 to 1, got 'maybe'"),
        ({"text": "w3", "label": "Yes"}, "did you mean 'yes'"),
        ({"text": "w3", "label": 2}, "got 2"),
        ({"text": "w3", "label": -1}, "got -1"),
        ({"text": "w3", "label": 10**30}, "got 1000"),
        ({"text": "w3", "label": True}, "got True"),
        ({"text": "w3", "label": 1.0}, "got 1.0"),
        ({"text": "w3", "label": None}, "to say what the text is, got nothing"),
        ({"text": "w3", "label": [1]}, "got .1."),
        (
            {"messages": [{"role": "user", "content": "w3"}]},
            "a classifier learns labels, and 'messages' is for a language model",
        ),
        ({"sentence1": "w3", "sentence2": "w4", "target": 1}, "text=sentence1,text_pair=sentence2,label=target"),
    ],
)
def test_records_that_are_refused(model: lc.Model, record: dict[str, Any], said: str) -> None:
    with pytest.raises(lc.DataError, match=said):
        lc.load_dataset([record], model.tokenizer)
    with pytest.warns(lc.LoraCWarning, match="1 bad examples skipped"):
        data = lc.load_dataset([*RECORDS, record], model.tokenizer, skip_bad=1)
    assert len(data) == 3 and len(data.skipped) == 1


def test_values_and_several_labels(base: Path) -> None:
    def labels_of_data(labels: list[Any], **options: Any) -> list[Any]:
        tokenizer = lc.load_model(base, task_type="SEQ_CLS", progress=False, **options).tokenizer
        data = lc.load_dataset([{"text": "w3", "label": label} for label in labels], tokenizer)
        assert all(s.label.dtype == np.float32 for s in data)
        return [s.label.tolist() for s in data]

    assert labels_of_data([2, 0.5, "-1e3", [7]], num_labels=1) == [[2], [0.5], [-1000], [7]]
    several: dict[str, Any] = {"id2label": ["a", "b", "c"], "problem_type": "multi_label_classification"}
    assert labels_of_data([["c", "a"], [], [0, 1, 0.5]], **several) == [[1, 0, 1], [0, 0, 0], [0, 1, 0.5]]
    for options, label, said in (
        ({"num_labels": 1}, "high", "a finite number"),
        ({"num_labels": 1}, float("inf"), "a finite number"),
        ({"num_labels": 1}, 1e300, "a finite number"),
        ({"num_labels": 1}, [1, 2], "a finite number"),
        (several, "a", "a list of names, or of 3 numbers"),
        (several, ["d"], "to name a, b, c, got 'd'"),
        (several, [1, 0], "a list of 3 numbers from 0 to 1"),
        (several, [1, 0, 2], "a list of 3 numbers from 0 to 1"),
    ):
        with pytest.raises(lc.DataError, match=said):
            labels_of_data([label], **options)


# --- texts, as transformers cuts them ---


@pytest.mark.parametrize("pair", [None, "w20 w21 w22", " ".join(f"w{i}" for i in range(20, 32))])
@pytest.mark.parametrize("text", ["w3 w4 w5 w6 w7", " ".join(f"w{i}" for i in range(3, 15))])
def test_long_texts_are_cut_as_by_the_tokenizers_library(model: lc.Model, text: str, pair: str | None) -> None:
    tokenizer = model.tokenizer
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    whole = tokenizer.backend.encode(text, pair).ids
    for length in range(6, len(whole) + 2):
        got = sequence_ids(tokenizer, text, pair, length)
        tokenizer.backend.enable_truncation(length)  # "longest_first", as transformers with truncation=True
        assert got == (tokenizer.backend.encode(text, pair).ids, length < len(whole))
        tokenizer.backend.no_truncation()
        assert got[0][-1] == 2


def test_no_room_for_a_text(model: lc.Model) -> None:
    model.tokenizer.backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    with pytest.raises(lc.DataError, match="max_seq_length: expected room for the text beside the 2 tokens"):
        lc.load_dataset(RECORDS, model.tokenizer, max_seq_length=2)
    data = lc.load_dataset(RECORDS, model.tokenizer, max_seq_length=4)
    assert data.n_truncated == 1 and list(data[0].input_ids) == [1, 3, 4, 2]


# --- data for the wrong model ---


def test_data_of_another_kind(model: lc.Model, base: Path, tmp_path: Path) -> None:
    language = lc.load_model(base, progress=False)
    texts = lc.load_dataset([{"text": "w3 w4"}], language.tokenizer)
    labelled = lc.load_dataset(RECORDS, model.tokenizer)
    model.add_adapter(r=2)
    language.add_adapter(r=2)
    config = lc.TrainConfig(method="lora", output_dir=str(tmp_path / "out"))
    with pytest.raises(lc.DataError, match="train_data: .*expected labels, got tokens to predict"):
        lc.Trainer(model, texts, config)
    with pytest.raises(lc.DataError, match="train_data: .*expected tokens to predict, got labels"):
        lc.Trainer(language, labelled, config)
    for label in (2, -1, 0.5, np.zeros(2)):
        own = lc.Dataset([Sample(np.array([3, 4], np.int32), np.zeros(2, np.float32), label=label)])
        with pytest.raises(lc.DataError, match="a number from 0 to 1 as the label"):
            lc.Trainer(model, own, config)


def test_labels_of_an_adapter_that_is_damaged(model: lc.Model, base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model.add_adapter(r=2)
    model.save_adapter(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    for metadata in ({"id2label": '["a", "b", "c"]'}, {"id2label": "[["}, {"id2label": "5"}, {"problem_type": "x"}):
        save_file(tensors, file, metadata=metadata)
        with pytest.raises(lc.AdapterError, match="its header names other labels than its score has rows"):
            lc.load_model(base, progress=False).load_adapter(tmp_path / "a")
    save_file(tensors | {"base_model.model.score.weight": np.zeros((3, 31), np.float32)}, file)
    language = lc.load_model(base, progress=False)
    before = language.logits([3, 4])
    with pytest.raises(lc.AdapterError, match=r"score\.weight: expected shape \(3, 32\), got \(3, 31\)"):
        language.load_adapter(tmp_path / "a")
    assert (
        language.labels is None and language.tokenizer.model_labels is None and np.array_equal(language.logits([3, 4]), before)
    )
    with pytest.raises(lc.AdapterError, match=r"score\.weight: expected shape \(2, 32\)"):  # on a classifier of two labels
        lc.load_model(base, task_type="SEQ_CLS", num_labels=2, progress=False).load_adapter(tmp_path / "a")


def test_options_of_labels() -> None:
    assert labels_from_options(None, None, None) is None
    assert labels_from_options(None, None, "regression") == Labels.numbered(1)
    assert labels_from_options(None, Labels(("a", "b"), "multi_label_classification"), None) == Labels(
        ("a", "b"), "multi_label_classification"
    )
