"""The examples run as they stand, in short forms, and show what they say."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lora_c as lc
from lora_c.demo.world import task

FOLDER = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def run(name: str, *arguments: str | Path, folder: Path) -> str:
    """What an example prints, started from a folder of its own, without a display and without a network."""
    environment = os.environ | {"PYTHONPATH": str(Path(lc.__file__).parents[1]), "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(FOLDER / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def loss_of_adapter(folder: Path, quantize: str | None) -> tuple[float, float]:
    """The loss of the base on a held-out conversation, and with the adapter."""
    model = lc.load_model("demo", quantize=quantize)
    messages = task(seed=0, n_train=1, n_held_out=1)[1][0]["messages"]
    base = model.loss(messages)
    model.load_adapter(folder)
    return base, model.loss(messages)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_said_in_the_table(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert f"python examples/{path.name}" in text
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"({path.name})" in table and f"def test_{path.stem}" in Path(__file__).read_text(encoding="utf-8")


def test_the_table_names_files_that_are_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 10 and [link for link in links if not (FOLDER / link).exists()] == []


def test_linear_layer(tmp_path: Path) -> None:
    printed = run("linear_layer.py", folder=tmp_path)
    differences = [float(text) for text in re.findall(r"largest difference (\S+) of", printed)]
    assert len(differences) == 5 and max(differences) < 1e-6
    losses = [float(text) for text in re.findall(r"^step +\d+  loss (\S+)$", printed, re.M)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] / 100


def test_nf4_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    printed = run("nf4_by_hand.py", "--out", tmp_path / "new", folder=tmp_path)
    assert re.findall(r"equal to NF4Tensor's .*: (\w+)", printed) == ["True"] * 3
    rows = re.findall(r"^(\w+) +blocks of 64  (\S+) bytes a weight  relative error (\S+)", printed, re.M)
    int4, fp4, nf4, double = (float(error) for _, _, error in rows)
    assert nf4 <= double < fp4 < int4 and double < nf4 * 1.01
    assert [float(n_bytes) for _, n_bytes, _ in rows] == [0.5625, 0.5625, 0.5625, 0.5159]
    picture = (tmp_path / "new" / "nf4.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_classify_questions(tmp_path: Path) -> None:
    (tmp_path / "wikisql").mkdir()
    for n, split in enumerate(("train", "valid", "test")):  # of its own, in WikiSQL's form
        pairs = [("How many ships are there", "COUNT x"), ("What is the top score of", "MAX x"), ("Who won in", "x")]
        lines = [{"text": f"table: t\ncolumns: x\nQ: {q} {n}{i} ?\nA: SELECT {a} FROM t"} for i in range(9) for q, a in pairs]
        (tmp_path / "wikisql" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for arguments in ((), ("--data", tmp_path / "wikisql")):
        printed = run("classify_questions.py", "--out", tmp_path / "out", *arguments, folder=tmp_path)
        head, lora = (float(text) for text in re.findall(r"test: .*accuracy ([\d.]+)", printed))
        assert lora >= head and lora > 0.9
    assert "labels: COUNT, MAX, none" in printed and "Classification(label='COUNT'" in printed
    model = lc.load_model("demo")
    model.load_adapter(tmp_path / "out" / "lora")
    assert model.labels is not None and model.labels.names == ("COUNT", "MAX", "none")


def test_classify_questions_of_wikisql(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    (tmp_path / "slice").mkdir()
    for split, n in (("train", 300), ("valid", 40), ("test", 60)):
        lines = (shared_data("wikisql") / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:n]
        (tmp_path / "slice" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    model = shared_data("stories260K_hf")
    printed = run("classify_questions.py", "--data", tmp_path / "slice", "--model", model, "--out", tmp_path, folder=tmp_path)
    head, lora = (float(text) for text in re.findall(r"test: .*matthews_correlation ([\d.-]+)", printed))
    assert lora > head


def test_finetune_chat(tmp_path: Path) -> None:
    for _ in range(2):  # the second time over what the first one wrote
        printed = run("finetune_chat.py", "--steps", "8", "--out", tmp_path / "run", folder=tmp_path)
    losses = [float(text) for text in re.findall(r"step \d+: ([\d.]+)", printed)]
    assert len(losses) == 5 and losses[-1] < losses[0] / 2
    assert printed.count("  before    ") == printed.count("  after     ") == printed.count("  expected  ") == 6
    base, adapted = loss_of_adapter(tmp_path / "run", "nf4")
    assert adapted < base / 2


def test_own_training_loop(tmp_path: Path) -> None:
    printed = run("own_training_loop.py", "--steps", "16", "--out", tmp_path / "run", folder=tmp_path)
    losses = [float(text) for text in re.findall(r"held-out loss (\S+)", printed)]
    assert losses[-1] < losses[0] / 2 and "step   16" in printed
    base, adapted = loss_of_adapter(tmp_path / "run", "nf4")
    assert adapted < base / 2


def test_own_training_loop_packs_as_the_library_reads() -> None:
    pack = runpy.run_path(str(FOLDER / "own_training_loop.py"))["pack"]
    model = lc.load_model("demo")
    examples = task(seed=3, n_train=4, n_held_out=1)[0]
    packed = pack(list(lc.load_dataset(examples, model.tokenizer)))
    one_by_one = [pack([sample])[3].sum() * model.loss(example["messages"])
                  for sample, example in zip(lc.load_dataset(examples, model.tokenizer), examples, strict=True)]  # fmt: skip
    assert model.decoder.loss(*packed) == pytest.approx(sum(one_by_one), rel=1e-6)


def test_merge_and_measure(tmp_path: Path) -> None:
    printed = run("merge_and_measure.py", "--steps", "8", "--out", tmp_path / "out", folder=tmp_path)
    table = re.findall(r"^(base.*?|merged, \w+) +([\d.]+) +(\S+) +([\d.]+)$", printed, re.M)
    rows = {name: (float(loss), float(difference), float(size)) for name, loss, difference, size in table}
    adapted = rows["base and adapter"][0]
    assert rows["base"][0] > 2 * adapted
    assert abs(rows["merged, float32"][1]) < 1e-5 < abs(rows["merged, nf4"][1]) < 0.2
    assert rows["merged, nf4"][2] < rows["merged, bfloat16"][2] < rows["merged, float32"][2]
    assert lc.load_model(tmp_path / "out" / "nf4").is_quantized


def test_gguf_roundtrip(tmp_path: Path) -> None:
    printed = run("gguf_roundtrip.py", "--steps", "8", "--out", tmp_path / "out", folder=tmp_path)
    rows = re.findall(r"^(\w+) +\S+ MB  logits move (\S+), bound (\S+)  (\d+) of 20 answers same$", printed, re.M)
    assert [row[0] for row in rows] == ["F32", "F16", "BF16", "Q8_0"]
    assert rows[0][1:] == ("0.0e+00", "0.0e+00", "20")
    assert all(0 < float(moved) <= float(bound) < 0.05 for _, moved, bound, _ in rows[1:])
