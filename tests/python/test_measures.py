"""What a model makes of a text: loss, log-probabilities, logits, hidden states, embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import lora_c as lc
from lora_c import reference
from lora_c.errors import ConfigError, DataError

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = np.load(GOLDEN / "hidden_states.npz").files


@pytest.fixture(scope="module")
def demo() -> lc.Model:
    return lc.load_model("demo", progress=False)


MESSAGES = [{"role": "user", "content": "Who has the ball?"}, {"role": "assistant", "content": "Tom has it."}]


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    with np.load(GOLDEN / "families" / f"{family}.npz") as record, np.load(GOLDEN / "hidden_states.npz") as golden:
        (tmp_path / "config.json").write_bytes(record["config"].tobytes())
        tensors = {k[7:]: record[k].view(ml_dtypes.bfloat16).astype(np.float32) for k in record.files if k[:7] == "tensor."}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        ids, expected = record["ids"][: golden[family].shape[1]], golden[family]
    model = lc.load_model(tmp_path, progress=False)
    for layer, states in enumerate(expected):
        np.testing.assert_allclose(model.hidden_states(ids.tolist(), layer), states, rtol=1e-4, atol=2e-5)
    assert np.array_equal(model.hidden_states(ids.tolist()), model.hidden_states(ids.tolist(), len(expected) - 1))
    assert np.array_equal(model.hidden_states(ids.tolist(), -len(expected)), model.hidden_states(ids.tolist(), 0))


def test_the_last_hidden_states_give_the_logits(tiny_model_dir: Path) -> None:
    model, ids = lc.load_model(tiny_model_dir, progress=False), [5, 9, 3, 17]
    head = model.dense_weight("lm_head")
    np.testing.assert_allclose(model.logits(ids), reference.linear(model.hidden_states(ids), head), atol=1e-5)
    embedding = model.dense_weight("embed_tokens")
    assert np.array_equal(model.hidden_states(ids, 0), embedding[ids])


def test_hidden_states_of_packed_segments_are_those_alone(demo: lc.Model) -> None:
    first, second = [5, 9, 3], [17, 20]
    together = demo.decoder.hidden_states(first + second, 2, [0, 3, 5])
    apart = np.concatenate([demo.decoder.hidden_states(first, 2), demo.decoder.hidden_states(second, 2)])
    np.testing.assert_allclose(together, apart, atol=1e-5)


@pytest.mark.parametrize("layer", [-2, 99])
def test_the_decoder_refuses_a_layer_that_is_not_there(demo: lc.Model, layer: int) -> None:
    with pytest.raises(ValueError, match="layer: expected 0"):
        demo.decoder.hidden_states([1, 2], layer)


@pytest.mark.parametrize("layer", [99, -99, 1.0, True, "last"])
def test_a_model_refuses_a_layer_that_is_not_there(demo: lc.Model, layer: object) -> None:
    with pytest.raises(ConfigError, match="layer: expected a whole number from 0"):
        demo.hidden_states("Tom", layer)  # type: ignore[arg-type]


def test_log_probs_are_the_log_softmax_of_the_logits(demo: lc.Model) -> None:
    ids = demo.tokenizer.encode("Tom has a ball.")
    logits = demo.logits(ids).astype(np.float64)
    expected = (
        logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1, keepdims=True)
    )
    np.testing.assert_allclose(demo.log_probs(ids), expected[np.arange(len(ids) - 1), ids[1:]], atol=1e-4)


def test_the_loss_of_a_text_is_the_mean_of_its_log_probs(demo: lc.Model) -> None:
    assert demo.loss("Tom has a ball.") == pytest.approx(-demo.log_probs("Tom has a ball.").mean(dtype=np.float64), abs=1e-6)


def test_the_loss_of_messages_is_that_of_training(demo: lc.Model, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": MESSAGES}) + "\n")
    from lora_c.training.evaluation import evaluate_loss

    data = lc.load_dataset(tmp_path / "d.jsonl", demo.tokenizer)
    assert demo.loss(MESSAGES) == pytest.approx(evaluate_loss(demo, data), rel=1e-12)
    assert demo.loss(MESSAGES) != pytest.approx(-demo.log_probs(MESSAGES).mean(), rel=1e-3)  # of the answer alone


def test_what_has_nothing_to_predict_or_does_not_fit_is_refused(demo: lc.Model) -> None:
    with pytest.raises(DataError, match="text: expected two tokens or more"):
        demo.loss([5])
    assert demo.log_probs([5]).shape == (0,)
    full = [5] * demo.context_length
    assert demo.logits(full).shape == (demo.context_length, demo.decoder.config["vocab_size"])
    for measure in (demo.loss, demo.log_probs, demo.logits, demo.hidden_states, demo.embed):
        with pytest.raises(DataError, match=f"expected at most the {demo.context_length} tokens"):
            measure([*full, 5])
    with pytest.raises(DataError, match="messages: expected at most"):
        demo.loss([MESSAGES[0], {"role": "assistant", "content": "ball " * 2000}])


def test_an_embedding_is_the_mean_of_hidden_states(demo: lc.Model) -> None:
    texts = ["Tom has a ball.", "Lily", "The ball is red and it is in the box. " * 30]
    vectors = demo.embed(texts)
    assert vectors.shape == (3, demo.config["hidden_size"]) and vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(vector, demo.hidden_states(text).mean(0), atol=1e-5)
        np.testing.assert_allclose(demo.embed(text), vector, atol=1e-5)
    np.testing.assert_allclose(demo.embed("Lily", layer=1, pooling="last"), demo.hidden_states("Lily", 1)[-1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(demo.embed(texts, normalize=True), axis=1), 1.0, atol=1e-6)
    with pytest.raises(ConfigError, match="pooling: expected 'mean' or 'last', got 'cls'"):
        demo.embed("Lily", pooling="cls")  # type: ignore[arg-type]


def test_measures_see_the_adapter_in_use(demo: lc.Model) -> None:
    plain = demo.loss("Tom has a ball.")
    demo.add_adapter(r=2, init_lora_weights=False, name="random")
    adapted, vector = demo.loss("Tom has a ball."), demo.embed("Tom")
    assert adapted != plain
    with demo.disable_adapter():
        assert demo.loss("Tom has a ball.") == plain and not np.array_equal(demo.embed("Tom"), vector)
    assert demo.loss("Tom has a ball.") == adapted
    demo.delete_adapter("random")
