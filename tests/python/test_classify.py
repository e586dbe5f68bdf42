"""Classifiers from data to answers: training, evaluation, resuming, saving, and the commands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import called
from device_values import write_values

import lora_c as lc
from lora_c.data.batching import pack
from lora_c.training.evaluation import evaluate_measures
from lora_c.training.label_measures import label_measures
from lora_c.training.replay import replay
from lora_c.weights.kinds import dense

NAMES = ["no", "yes", "maybe"]
METHODS: dict[str, dict[str, Any]] = {
    "head": {"trainable": "head"}, "full": {"trainable": "full"}, "lora": {}, "qlora": {"quantize": "nf4", "block_size": 32},
}  # fmt: skip


def records(n: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """The label is said by the second word."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        words, label = rng.integers(10, 60, 5), int(rng.integers(0, 3))
        found.append({"text": f"w{words[0]} w{label + 3} w{words[1]} w{words[2]}", "label": NAMES[label]})
    return found


@pytest.fixture
def base(make_model: Callable[..., Path]) -> Path:
    return make_model("base")


@pytest.fixture
def trainer(base: Path, tmp_path: Path) -> Callable[..., lc.Trainer]:
    def make(method: str, device: str | None = None, out: str | None = None, **changes: Any) -> lc.Trainer:
        options = METHODS[method] | {"task_type": "SEQ_CLS", "id2label": NAMES, "device": device, "progress": False}
        model = lc.load_model(base, **options)
        if method in ("lora", "qlora"):
            model.add_adapter(r=4, lora_alpha=8)
        given = {"max_steps": 20, "learning_rate": 2e-2, "save_steps": 0, "eval_steps": 10, **changes}
        config = lc.TrainConfig(method=method, output_dir=str(tmp_path / (out or f"{method}-{device}")), **given)  # type: ignore[arg-type]
        data, held_out = (lc.load_dataset(records(n, seed), model.tokenizer) for n, seed in ((24, 0), (9, 1)))
        return lc.Trainer(model, data, config, held_out)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_training_measures_and_saves(trainer: Callable[..., lc.Trainer], method: str, base: Path, tmp_path: Path) -> None:
    run = trainer(method)
    before, first = {name: np.array(dense(w)) for name, w in run.model.weights.items()}, run.evaluate(run.train_data)
    run.train()
    evaluations = [record for record in run.history if "eval_loss" in record]
    assert [record["step"] for record in evaluations] == [0, 10, 20]
    assert set(evaluations[-1]) == {"step", "eval_loss", "eval_accuracy", "eval_f1_macro", "eval_matthews_correlation"}
    assert run.evaluate(run.train_data) < 0.8 * first
    changed = {name for name, w in run.model.weights.items() if not np.array_equal(before[name], dense(w))}
    wanted = {"head": {"lm_head"}, "full": set(before)}
    assert changed == wanted.get(method, set())
    texts = [record["text"] for record in records(9, 1)]
    said = run.model.classify(texts)
    folder = tmp_path / "saved"
    if method in ("lora", "qlora"):
        run.model.save_adapter(folder)
        again = lc.load_model(base, quantize=METHODS[method].get("quantize"), block_size=32, progress=False)
        again.load_adapter(folder)
        assert again.labels is not None and list(again.labels.names) == NAMES
    else:
        run.model.save(folder)
        again = lc.load_model(folder, progress=False)
    assert again.classify(texts) == said


def test_the_loss_is_the_mean_over_sequences(trainer: Callable[..., lc.Trainer]) -> None:
    run = trainer("lora", precision="exact")
    model = run.model
    logits = np.array([model.logits(text["text"])[-1] for text in records(9, 1)], np.float64)
    labels = [NAMES.index(record["label"]) for record in records(9, 1)]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = -np.log(p[np.arange(9), labels]).mean()
    assert run.evaluate() == pytest.approx(wanted, rel=1e-5)
    found = run.measure()
    assert found["accuracy"] == np.mean(logits.argmax(axis=1) == labels) and found["loss"] == run.evaluate()
    assert evaluate_measures(model, run.eval_data, max_tokens=7)["loss"] == pytest.approx(wanted, rel=1e-5)  # type: ignore[arg-type]


def test_accumulation_changes_nothing(trainer: Callable[..., lc.Trainer]) -> None:
    one = trainer("lora", out="one", per_device_train_batch_size=8, max_steps=3, precision="exact").train()
    many = trainer(
        "lora", out="many", per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=3, precision="exact"
    ).train()
    assert [r["loss"] for r in one.history if "loss" in r] == pytest.approx(
        [r["loss"] for r in many.history if "loss" in r], rel=1e-5
    )


@pytest.mark.parametrize("method", ["head", "lora"])
def test_a_stopped_run_goes_on(trainer: Callable[..., lc.Trainer], method: str) -> None:
    whole = trainer(method, out="whole")
    whole.train()
    halted = trainer(method, out="stopped", save_steps=10)
    halted.train()
    again = trainer(method, out="stopped", save_steps=10, save_total_limit=None)
    first = again.resume_from(again.output_dir / "checkpoint-10")
    assert first == 10
    again.train()
    for got, want in zip(again.parameters, whole.parameters, strict=True):
        assert np.array_equal(got.data, want.data), got.name


def test_a_step_that_is_not_finite_is_replayed(base: Path, tmp_path: Path) -> None:
    class Spoil(lc.Callback):
        def on_step(self, state: lc.TrainerState) -> None:
            parameter = next(p for p in state.model.trainable_parameters() if p.name.endswith("score.weight"))
            parameter.write(np.full(parameter.shape, 3e38, np.float32))

    model = lc.load_model(base, task_type="SEQ_CLS", num_labels=1, seed=3, progress=False)
    model.add_adapter(r=2)
    data = lc.load_dataset([{"text": f"w{i} w3", "label": i / 7} for i in range(4, 20)], model.tokenizer)
    config = lc.TrainConfig(method="lora", output_dir=str(tmp_path / "out"), max_steps=4, save_steps=0)
    with pytest.raises(lc.DivergenceError, match="at step 2"):
        lc.Trainer(model, data, config, callbacks=[Spoil()]).train()
    found = replay(tmp_path / "out" / "bad-step-2")
    assert found.same_loss and found.same_gradients and found.first_nonfinite is not None
    assert found.first_nonfinite.operation in ("linear_forward", "values_loss")


def test_the_best_evaluation_by_accuracy(trainer: Callable[..., lc.Trainer]) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "save_steps": 5, "eval_steps": 5}
    run = trainer("lora", **best, save_total_limit=None)
    result = run.train()
    found = {record["step"]: record["eval_accuracy"] for record in run.history if "eval_accuracy" in record}
    assert result.best is not None and result.best.metric == "eval_accuracy"
    assert result.best.value == max(found.values()) == run.measure()["accuracy"]


@pytest.mark.parametrize("problem", ["single_label_classification", "regression", "multi_label_classification"])
def test_the_same_on_another_device(base: Path, fake: str, problem: str) -> None:
    labels: dict[str, Any] = {
        "single_label_classification": [2, 0], "regression": [[0.5, -1.0, 2.0], [1.0, 0.0, 3.0]],
        "multi_label_classification": [[1, 0, 1], [0, 0, 0]],
    }  # fmt: skip
    results = []
    for device in ("cpu", fake):
        model = lc.load_model(base, task_type="SEQ_CLS", num_labels=3, problem_type=problem, device=device, progress=False)
        model.add_adapter(r=2, modules_to_save=["norm"])
        data = lc.load_dataset([{"text": "w3 w4 w5", "label": x} for x in labels[problem]], model.tokenizer)
        batch = pack(data.samples)
        arrays = batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight
        loss = model.decoder.forward_backward(*arrays, grad_scale=0.5)
        token_loss = np.full(batch.n_tokens, 7, np.float32)
        assert model.decoder.loss(*arrays, token_loss=token_loss) == loss
        assert (token_loss[batch.loss_weight == 0] == 0).all() and token_loss.sum() == pytest.approx(loss, rel=1e-6)
        results.append(
            (loss, [np.array(p.grad) for p in model.trainable_parameters()], model.decoder.last_logits(*arrays[:2]))
        )
        assert any(gradient.any() for gradient in results[-1][1])
    assert results[0][0] == results[1][0] and np.array_equal(results[0][2], results[1][2])
    assert all(np.array_equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("problem", ["single_label_classification", "regression", "multi_label_classification"])
@pytest.mark.parametrize("kind", [lc.PromptTuningConfig, lc.PrefixTuningConfig])
def test_virtual_tokens_before_labels(base: Path, problem: str, kind: Any) -> None:
    """The loss is that of the logits, and the gradient of the tokens agrees with differences of the loss."""
    labels: dict[str, Any] = {
        "single_label_classification": [2, 0], "regression": [[0.5, -1.0, 2.0], [1.0, 0.0, 3.0]],
        "multi_label_classification": [[1, 0, 1], [0, 0, 0]],
    }  # fmt: skip
    model = lc.load_model(base, task_type="SEQ_CLS", num_labels=3, problem_type=problem, progress=False)
    with pytest.warns(lc.LoraCWarning, match="does not train the classifier's score"):
        model.add_adapter(kind(num_virtual_tokens=3))
    texts = ["w3 w4 w5", "w6 w7"]
    records = [{"text": text, "label": x} for text, x in zip(texts, labels[problem], strict=True)]
    batch = pack(lc.load_dataset(records, model.tokenizer).samples)
    arrays = batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight
    (tokens,) = model.trainable_parameters()
    loss = model.decoder.forward_backward(*arrays)
    logits = model.decoder.last_logits(*arrays[:2]).astype(np.float64)
    wanted = np.asarray(labels[problem], np.float64)
    if problem == "regression":
        expected = np.square(logits - wanted).mean(axis=1).sum()
    elif problem == "multi_label_classification":
        expected = (np.log1p(np.exp(logits)) - wanted * logits).mean(axis=1).sum()
    else:
        expected = sum(np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels[problem], strict=True))
    assert loss == pytest.approx(expected, rel=1e-5) and model.decoder.loss(*arrays) == loss
    direction = np.random.default_rng(0).standard_normal(tokens.shape).astype(np.float32)
    slope = float(np.sum(tokens.grad * direction, dtype=np.float64))
    start, found = np.array(tokens.data), []
    for step in (1e-2, -1e-2):
        write_values(tokens, start + np.float32(step) * direction)
        found.append(model.decoder.loss(*arrays))
    assert slope != 0.0 and (found[0] - found[1]) / 2e-2 == pytest.approx(slope, rel=2e-2, abs=1e-4)


def test_values_that_the_decoder_refuses(base: Path) -> None:
    def decoder(problem: str) -> Any:
        options: dict[str, Any] = {"task_type": "SEQ_CLS", "num_labels": 2, "problem_type": problem}
        return lc.load_model(base, progress=False, **options).decoder

    ids, cu, weight = [3, 4], [0, 2], np.array([0, 1], np.float32)
    values = np.array([[np.nan, 5], [0.5, 1]], np.float32)  # the first row carries no loss
    assert math.isfinite(decoder("multi_label_classification").loss(ids, cu, values, weight))
    for problem, bad, said in (
        (
            "multi_label_classification",
            [[0, 0], [0.5, 1.5]],
            "values: expected 0 to 1 .* got 1.5 at index 1, 1",
        ),
        ("regression", [[0, 0], [np.inf, 1]], "values: expected finite numbers"),
        ("regression", [[0, 0, 0], [1, 1, 1]], "targets"),
        ("regression", [0, 1], "targets"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            decoder(problem).loss(ids, cu, np.array(bad, np.float32), weight)
    with pytest.raises(ValueError, match="targets: expected 0 to 1 where loss_weight is not 0, got 2"):
        decoder("single_label_classification").loss(ids, cu, [0, 2], weight)
    sizes = lc.load_model(base, progress=False).architecture.decoder_kwargs
    for options, said in (
        ({"num_labels": 2, "tie_word_embeddings": True}, "tie_word_embeddings: expected false with num_labels"),
        ({"num_labels": 2, "logit_softcap": 3.0}, "logit_scale, logit_softcap: expected 1 and 0"),
        ({"num_labels": -2}, "num_labels"),
        ({"num_labels": 2, "problem_type": "x"}, "problem_type: expected 'single_label_classification'"),
    ):
        with pytest.raises(ValueError, match=said):
            lc.Decoder(**(sizes | options))


# --- answers ---


def test_what_is_said_of_texts(base: Path) -> None:
    model = lc.load_model(base, task_type="SEQ_CLS", id2label=NAMES, progress=False)
    one = model.classify("w3 w4")
    assert isinstance(one, lc.Classification) and one.labels == (one.label,) and one.score == max(one.scores.values())
    assert list(one.scores) == NAMES and sum(one.scores.values()) == pytest.approx(1)
    several = model.classify(["w3 w4", ("w3", "w4"), {"text": "w3", "text_pair": "w4"}, *(["w5 w6 w7"] * 900)])
    assert len(several) == 903 and model.classify([]) == []
    for got, want in [*((found, one) for found in several[:3]), (several[-1], model.classify("w5 w6 w7"))]:
        assert got.label == want.label and got.scores == pytest.approx(want.scores, rel=1e-5)
    assert model.classify("w3 w4 " * 100, max_seq_length=2) == one
    assert len(model.classify(["w3 " * 200])) == 1  # cut to the context
    values = lc.load_model(base, task_type="SEQ_CLS", num_labels=1, progress=False).classify("w3")
    assert values.label == "LABEL_0" and values.scores == {"LABEL_0": values.score}
    each = lc.load_model(base, task_type="SEQ_CLS", num_labels=3, problem_type="multi_label_classification", progress=False)
    found = each.classify("w3 w4")
    logits = each.logits("w3 w4")[-1]
    assert found.labels == tuple(name for name, x in zip(found.scores, logits, strict=True) if x >= 0)
    assert list(found.scores.values()) == pytest.approx(1 / (1 + np.exp(-logits.astype(np.float64))))


def test_what_is_refused(base: Path, tmp_path: Path) -> None:
    model = lc.load_model(base, task_type="SEQ_CLS", id2label=NAMES, progress=False)
    for call in (
        lambda: model.generate("w3"), lambda: next(model.stream("w3")), lambda: lc.Batch(model), lambda: model.loss("w3 w4"),
        lambda: model.log_probs("w3 w4"), lambda: lc.gguf.write_model(tmp_path / "m.gguf", model),
    ):  # fmt: skip
        with pytest.raises(lc.ConfigError, match="expected a language model, got a classifier of 3 labels"):
            call()
    with pytest.raises(lc.ConfigError, match="classify: expected a classifier, got a language model"):
        lc.load_model(base, progress=False).classify("w3")
    for given, said in (
        (5, "got a int"), ("", "at least one token"), ([["w3", "w4"]], "got a list"),
        (("w3", 5), "'text_pair' to be a string"),
        ({"text": None}, "'text' to be a string"), ("\ud800", "lone surrogate"),
    ):  # fmt: skip
        with pytest.raises(lc.DataError, match=said):
            model.classify(given)
    with pytest.raises(lc.ConfigError, match="max_seq_length: expected 1 or more"):
        model.classify("w3", max_seq_length=0)
    model.add_adapter(r=2)
    with pytest.raises(lc.ConfigError, match="merge_with_report: expected a language model"):
        from lora_c.model.merge_report import merge_with_report

        merge_with_report(model)
    for format in ("mlx", "gguf"):
        with pytest.raises(lc.AdapterError, match="expected 'peft' for an adapter of a classifier"):
            model.save_adapter(tmp_path / "a", format=format)  # type: ignore[arg-type]


def test_measures_of_values_and_rows(base: Path) -> None:
    model = lc.load_model(base, task_type="SEQ_CLS", num_labels=1, progress=False)
    data = lc.load_dataset([{"text": f"w{i} w{i + 1}", "label": i / 7} for i in range(3, 12)], model.tokenizer)
    found = label_measures(model, data, 2048)
    assert list(found) == ["loss", "mse", "pearson", "spearmanr"] and found["loss"] == found["mse"]
    same = lc.load_dataset([{"text": f"w{i}", "label": 1.5} for i in range(3, 12)], model.tokenizer)
    flat = label_measures(model, same, 2048)
    assert flat["pearson"] == flat["spearmanr"] == 0  # a correlation with what never changes
    each = lc.load_model(base, task_type="SEQ_CLS", num_labels=3, problem_type="multi_label_classification", progress=False)
    rows = lc.load_dataset([{"text": "w3", "label": [1, 0, 1]}, {"text": "w4 w5", "label": [0, 0, 0]}], each.tokenizer)
    found = label_measures(each, rows, 2048)
    numbers = np.array([each.decoder.last_logits(s.input_ids)[0] for s in rows], np.float64)
    marks = np.array([s.label for s in rows])
    batch_loss = np.log1p(np.exp(np.where(marks == 1, -numbers, numbers))).mean()
    assert list(found) == ["loss", "accuracy", "f1_micro", "f1_macro"] and found["loss"] == pytest.approx(batch_loss, rel=1e-6)
    two = lc.load_model(base, task_type="SEQ_CLS", num_labels=2, progress=False)
    data = lc.load_dataset([{"text": "w3", "label": 1}, {"text": "w4 w5", "label": 0}], two.tokenizer)
    assert list(label_measures(two, data, 2048)) == ["loss", "accuracy", "f1", "f1_macro", "matthews_correlation"]


# --- commands ---


@pytest.fixture
def place(base: Path, tmp_path: Path) -> Path:
    for name, n, seed in (("train", 24, 0), ("valid", 9, 1)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records(n, seed)))
    return tmp_path


def run(place: Path, line: str, code: int = 0) -> Any:
    done = called(place, line.split())
    assert done.returncode == code, done.stderr
    return done


TRAIN = (
    "train --model base --data train.jsonl --eval-data valid.jsonl --task-type SEQ_CLS --method lora --max-steps 8 --lr 1e-2 "
)


def test_a_run_on_the_command_line(place: Path) -> None:
    done = run(place, TRAIN + "--output-dir out --json")
    assert "labels    maybe, no, yes (single_label_classification), found in the training data" in done.stderr
    assert "task      classifier: maybe, no, yes" in done.stderr and "measured  accuracy" in done.stderr
    result = json.loads(done.stdout)
    assert {"eval_loss", "eval_accuracy", "eval_f1_macro"} <= result.keys()
    record = json.loads((place / "out" / "run.json").read_text())
    assert record["task_type"] == "SEQ_CLS" and record["labels"] == ["maybe", "no", "yes"] and record["samples"] == []
    assert record["result"]["eval_accuracy"] == result["eval_accuracy"]
    card = (place / "out" / "README.md").read_text()
    for part in ("pipeline_tag: text-classification", "AutoModelForSequenceClassification", "num_labels=3",
                 "held-out accuracy", "lora-c classify --run ."):  # fmt: skip
        assert part in card
    lines = [json.loads(line) for line in (place / "out" / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_matthews_correlation" in line for line in lines)
    # the same measures again, from the adapter on its base
    found = json.loads(run(place, "eval --run out --data valid.jsonl --json").stdout)
    assert found["accuracy"] == result["eval_accuracy"] and found["sequences"] == 9 and "perplexity" not in found
    assert run(place, "eval --run out --data valid.jsonl").stdout.splitlines()[-1].startswith("loss ")
    # its answers
    (place / "texts.txt").write_text("w10 w3 w20 w30\n\nw11 w4\n")
    rows = [json.loads(line) for line in run(place, "classify --run out --texts texts.txt").stdout.splitlines()]
    assert [row["text"] for row in rows] == ["w10 w3 w20 w30", "w11 w4"] and list(rows[0]["scores"]) == ["maybe", "no", "yes"]
    pair = json.loads(run(place, "classify --run out w11 --text-pair w4").stdout)
    assert pair["scores"] == rows[1]["scores"] and pair["text_pair"] == "w4"
    # config.yaml keeps what was found, and the run goes on with it
    assert "task_type: SEQ_CLS" in (place / "out" / "config.yaml").read_text()
    again = run(place, "train --config out/config.yaml --resume --max-steps 12")
    assert "labels    " not in again.stderr and "at step 8 of 12" in again.stderr
    # a folder of its own
    run(place, "merge --run out --output-dir merged")
    assert "labels" in run(place, "inspect merged").stdout and "SEQ_CLS" in run(place, "inspect out").stdout
    assert "label maybe" in run(place, "data --model merged --data train.jsonl --show 3").stdout + "label maybe"
    run(place, "train --model merged --data train.jsonl --method head --max-steps 2 --output-dir head")
    assert lc.load_model(place / "head", progress=False).labels == lc.load_model(place / "merged", progress=False).labels


def test_runs_that_name_their_labels(place: Path) -> None:
    run(place, TRAIN + "--output-dir a --id2label no,yes,maybe,never --max-steps 1")
    model = lc.load_model(place / "base", progress=False)
    model.load_adapter(place / "a")
    assert model.labels is not None and model.labels.names == ("no", "yes", "maybe", "never")
    go_on = run(place, TRAIN + "--output-dir b --adapter a --max-steps 1")
    assert "task      classifier: no, yes, maybe, never" in go_on.stderr
    (place / "n.csv").write_text("sentence,stars\nw3 w4,1\nw5,4.5\n")
    run(place, "train --model base --data n.csv --columns text=sentence,label=stars --task-type SEQ_CLS --method full "
               "--max-steps 1 --output-dir n")  # fmt: skip
    assert lc.load_model(place / "n", progress=False).labels == lc.Labels.numbered(1)
    shown = run(place, "data --model base --data train.jsonl --task-type SEQ_CLS --show 1").stdout
    assert "label " + records(1)[0]["label"] in shown


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train --model base --data train.jsonl --num-labels 3 --output-dir o", "expected --task-type SEQ_CLS beside it"),
        (TRAIN + "--output-dir o --id2label no,yes", "expected 'label' to be one of no, yes"),
        (TRAIN + "--output-dir o --num-labels 2 --id2label no,yes,maybe", "expected 3, as id2label has names, got 2"),
        (TRAIN + "--output-dir o --problem-type regression", "train.jsonl:1: expected labels of regression (decimals"),
        ("classify --model base w3", "expected a classifier, got a language model"),
        (
            "train --model base --data train.jsonl --task-type CAUSAL_LM --problem-type regression --output-dir o",
            "SEQ_CLS beside it",
        ),
    ],
)
def test_commands_that_are_refused(place: Path, line: str, said: str) -> None:
    done = called(place, line.split())
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()[-1]) < 600


def test_commands_for_language_models(place: Path) -> None:
    lc.load_model(place / "base", task_type="SEQ_CLS", id2label=NAMES, progress=False).save(place / "c")
    train = "train --model c --data train.jsonl --task-type CAUSAL_LM --output-dir o"
    for line in ("generate --model c w3", "chat --model c", "bench --model c --steps 1 --batch 1 --length 8",
                 "export c c.gguf --to gguf", train):  # fmt: skip
        done = called(place, line.split())
        assert done.returncode != 0 and "classifier" in done.stderr and "Traceback" not in done.stderr, line
