"""The demonstration: what the base may not know, that nothing leaks, and that a short run works end to end."""

import json

import numpy as np
import pytest

import lora_c as lc
from lora_c.checkpoints.model_names import BASE_MODEL
from lora_c.demo import world
from lora_c.demo.run import dataset, exact_match, run_demo, shortcoming
from lora_c.training.evaluation import evaluate_loss


@pytest.fixture(scope="module")
def base():
    return lc.load_model(BASE_MODEL, quantize="nf4", double_quant=True, progress=False)


def test_the_base_that_ships_is_small(base):
    assert 0.8e6 < base.num_parameters() < 1.3e6
    assert sum(file.stat().st_size for file in BASE_MODEL.iterdir()) <= 2.5e6


def test_the_world_is_a_function_of_its_seed():
    assert list(world.stories(3, 20)) == list(world.stories(3, 20)) != list(world.stories(4, 20))
    assert world.conversations(3, 20, 2) == world.conversations(3, 20, 2) != world.conversations(4, 20, 2)


def test_training_and_held_out_examples_share_no_scene():
    train, held_out = world.task(0, 3000, 200)
    assert len({example["messages"][0]["content"] for example in train}) == 3000
    assert not {world.scene_text(e) for e in train} & {world.scene_text(e) for e in held_out}


def test_stories_hold_no_question():
    assert not any("?" in story for story in world.stories(100, 500))


def test_every_answer_stands_in_its_scene():
    for example in world.conversations(5, 100, 5):
        scene = world.scene_text(example).lower()
        for message in example["messages"][1::2]:
            assert all(word in scene for word in message["content"].lower().split())


def test_the_base_cannot_do_the_task(base):
    _, held_out = world.task(0, 10, 50)
    match, _ = exact_match(base, held_out)
    assert match <= 0.1


def test_the_base_has_learned_to_look_back(base):
    """A word that the scene has named is far more probable in a remark than one that it has not."""
    told = world.scene(np.random.Generator(np.random.Philox(key=[9, 9])))
    other = next(colour for colour in world.COLOURS if colour != told.colour)
    text = told.say(world.TELLING[0][0])
    losses = [
        evaluate_loss(base, dataset_of(base, f"{text} The {told.things} were {colour}.")) for colour in (told.colour, other)
    ]
    assert losses[1] > losses[0] + 0.1


def dataset_of(model, text):
    ids = np.asarray(model.tokenizer.encode(text), np.int32)
    return lc.data.Dataset([lc.data.Sample(ids, np.ones(len(ids), np.float32))])


def test_a_short_run_end_to_end(base, tmp_path, capsys):
    summary = run_demo(tmp_path, short=True)
    assert shortcoming(summary, short=True) is None
    assert summary["merged_logit_difference"] < 1e-4
    assert json.loads((tmp_path / "demo.json").read_text()) == summary
    first, second = (lc.load_model(BASE_MODEL, quantize="nf4", progress=False) for _ in range(2))
    for model in (first, second):
        model.load_adapter(tmp_path)
    _, held_out = world.task(0, 256, 20)
    first.decoder.precision = "fast"  # as in training
    assert evaluate_loss(first, dataset(first, held_out)) == pytest.approx(summary["held_out_loss"], rel=1e-6)
    first.decoder.precision = second.decoder.precision
    ids = np.arange(20, dtype=np.int32)
    assert np.array_equal(first.decoder.logits(ids), second.decoder.logits(ids))


def test_a_demonstration_that_failed_says_so():
    good = {"merged_answers_equal": True, "exact_match_after": 0.97}
    assert shortcoming(good, short=False) is None
    assert "90 %" in (shortcoming(good | {"exact_match_after": 0.5}, short=False) or "")
    assert "merged" in (shortcoming(good | {"merged_answers_equal": False}, short=False) or "")
