"""The command line as a person meets it, in its own process."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import lora_c as lc


def run(*args, ok=True, **kwargs):
    done = subprocess.run(
        [sys.executable, "-m", "lora_c", *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs
    )
    if ok:
        assert done.returncode == 0, done.stderr
    return done


def one_line_error(done):
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_help_lists_every_command():
    text = run("--help").stdout
    for name in ("train", "generate", "chat", "eval", "merge", "quantize", "bench", "demo"):
        assert name in text
        assert "Usage" in run(name, "--help").stdout
    assert "--learning-rate" in run("train", "--help").stdout


@pytest.mark.parametrize("source", ["tinyshakespeare", "gsm8k"])
def test_train_merge_generate(shared_data, stories, tmp_path, source):
    if source == "gsm8k":
        rows = (shared_data("gsm8k") / "train.jsonl").read_text(encoding="utf-8").splitlines()[:120]
        records = [json.loads(r) for r in rows]
        data = tmp_path / "gsm8k.jsonl"
        data.write_text(
            "".join(json.dumps({"prompt": r["question"] + "\n", "completion": r["answer"]}) + "\n" for r in records),
            encoding="utf-8",
        )
    else:
        data = tmp_path / "text.txt"
        text = (shared_data("tinyshakespeare") / "input.txt").read_text(encoding="utf-8")
        data.write_text(text[:40_000], encoding="utf-8")
    out = tmp_path / "out"
    config = tmp_path / "run.yaml"
    config.write_text("learning_rate: 1e-3\nmax_steps: 99\nmax-seq-length: 128\nr: 4\n", encoding="utf-8")
    done = run("train", "--config", config, "--model", stories, "--data", data, "--output-dir", out, "--max-steps", 30,
               "--val-fraction", 0.1, "--eval-steps", 30)  # fmt: skip
    assert "forecast" in done.stderr and "adapter in" in done.stderr
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evals = [r["eval_loss"] for r in records if "eval_loss" in r]
    assert evals[-1] < evals[0]
    assert max(r["step"] for r in records) == 30
    for name in ("adapter_model.safetensors", "adapter_config.json", "loss.png", "config.yaml"):
        assert (out / name).stat().st_size > 0

    model = lc.load_model(stories, progress=False)
    model.load_adapter(out)
    ids = np.arange(3, 60, dtype=np.int32)
    with_adapter = model.decoder.logits(ids)
    run("merge", "--model", stories, "--adapter", out, "--output-dir", tmp_path / "merged", "--dtype", "float32")
    merged = lc.load_model(tmp_path / "merged", progress=False).decoder.logits(ids)
    assert np.abs(merged - with_adapter).max() < 1e-4
    run("merge", "--model", stories, "--adapter", out, "--output-dir", tmp_path / "merged16")
    merged16 = lc.load_model(tmp_path / "merged16", progress=False).decoder.logits(ids)
    # bfloat16 keeps 8 bits: each weight moves by at most 2^-9 relative; logits of this model move by well under 0.3
    assert np.abs(merged16 - with_adapter).max() < 0.3
    text = run("generate", "--model", stories, "--adapter", out, "--max-new-tokens", 8, "Once upon").stdout
    assert len(text.strip()) > 0
    loss = json.loads(run("eval", "--model", stories, "--data", data, "--max-seq-length", 128, "--json").stdout)
    adapted = json.loads(
        run("eval", "--model", stories, "--adapter", out, "--data", data, "--max-seq-length", 128, "--json").stdout
    )
    assert adapted["loss"] < loss["loss"]


def test_several_prompts_are_answered_as_json_lines(tiny_model_dir, tmp_path):
    model = lc.load_model(tiny_model_dir, progress=False)
    want = [{"prompt": text, "answer": model.generate(text, max_new_tokens=4, ignore_eos=True)} for text in ("w3 w4", "w5")]
    flags = ("--model", tiny_model_dir, "--max-new-tokens", 4, "--ignore-eos")
    (tmp_path / "prompts.txt").write_text("w3 w4\n\nw5\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text("prompt: w5\n", encoding="utf-8")
    for args in (("w3 w4", "w5"), ("--prompts", tmp_path / "prompts.txt")):
        assert [json.loads(line) for line in run("generate", *flags, *args).stdout.splitlines()] == want
    assert run("generate", *flags, "--config", tmp_path / "c.yaml").stdout == want[1]["answer"] + "\n"
    (tmp_path / "empty.txt").touch()
    for name in ("empty.txt", "missing.txt"):
        assert name in one_line_error(run("generate", *flags, "--prompts", tmp_path / name, ok=False))


def test_what_is_quantized_already_is_not_quantized_with_other_options(stories, tmp_path):
    run("quantize", "--model", stories, "--output-dir", tmp_path / "q")
    done = run("quantize", "--model", tmp_path / "q", "--output-dir", tmp_path / "again", "--block-size", 128, ok=False)
    assert "expected weights that are not quantized yet, got 35 matrices in 4 bits" in one_line_error(done)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", ["LORA_C_NUM_THREADS", "LORA_C_ISA", "LORA_C_PRECISION"])
def test_a_variable_with_another_value_is_one_line(name, stories):
    done = run("generate", "--model", stories, "hello", ok=False, env=os.environ | {name: "much"})
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"lora-c: {name}: expected ") and done.stderr.count("\n") == 1


def test_quantize_writes_a_folder_that_loads_with_equal_logits(stories, tmp_path):
    run("quantize", "--model", stories, "--output-dir", tmp_path / "q")
    ids = np.arange(3, 40, dtype=np.int32)
    direct = lc.load_model(stories, quantize="nf4", progress=False).decoder.logits(ids)
    np.testing.assert_array_equal(lc.load_model(tmp_path / "q", progress=False).decoder.logits(ids), direct)


def test_quantize_writes_other_types_too(stories, tmp_path):
    said = run("quantize", "--model", stories, "--output-dir", tmp_path / "q", "--quant-type", "int4", "--json")
    assert json.loads(said.stdout)["dtype"] == "int4" and "lora-c alone reads this folder" in " ".join(said.stderr.split())
    assert lc.load_model(tmp_path / "q", progress=False).weights["layers.0.q_proj"].quant_type == "int4"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("train", "--model", "nowhere", "--data", "x.jsonl"), "x.jsonl"),
        (("train", "--data", "x.jsonl"), "give --model PATH"),
        (("generate", "--model", "nowhere", "hi"), "nowhere"),
        (("trian",), "Did you mean 'train'"),
        (("train", "--config", "none.yaml"), "expected a readable YAML file"),
        (("train", "--model", "m", "--data", "d", "--learning-rate", "-1"), "--learning-rate: expected greater than 0"),
    ],
)
def test_mistakes_end_in_one_line(args, message, tmp_path):
    assert message in one_line_error(run(*args, ok=False, cwd=tmp_path))


def test_unknown_config_key_names_the_nearest(tmp_path):
    (tmp_path / "c.yaml").write_text("learning_rte: 1e-3\n", encoding="utf-8")
    assert "'learning_rate'" in one_line_error(run("train", "--config", tmp_path / "c.yaml", ok=False))


def test_bad_json_line_is_named(stories, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text('{"text": "ok"}\nnot json\n', encoding="utf-8")
    assert "d.jsonl:2" in one_line_error(run("train", "--model", stories, "--data", data, "--output-dir", tmp_path, ok=False))


def test_ctrl_c_stops_with_a_checkpoint(shared_data, stories, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_c", "train", "--model", stories, "--data", shared_data("tinyshakespeare") / "input.txt",
         "--output-dir", tmp_path / "out", "--max-steps", "100000", "--max-seq-length", "64"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell starts background jobs deaf to it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    metrics = tmp_path / "out" / "metrics.jsonl"
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err and "saving a checkpoint" in err
    assert any(p.name.startswith("checkpoint-") for p in (tmp_path / "out").iterdir())


def test_every_command_takes_a_config_file(stories, tmp_path):
    data = tmp_path / "text.txt"
    data.write_text("Once upon a time there was a little girl. " * 20)
    config = tmp_path / "eval.yaml"
    config.write_text(f"model: {stories}\ndata: {data}\nmax-seq-length: 64\njson: true\n")
    result = json.loads(run("eval", "--config", config).stdout)
    assert result["loss"] > 0
    shorter = json.loads(run("eval", "--config", config, "--max-seq-length", 32).stdout)
    assert shorter["sequences"] > result["sequences"]
    config.write_text(f"model: {stories}\ndatta: {data}\n")
    assert "did you mean 'data'?" in one_line_error(run("eval", "--config", config, ok=False))


def test_the_resolved_config_starts_the_same_run_again(stories, tmp_path):
    data = tmp_path / "text.txt"
    data.write_text("Once upon a time there was a little girl. " * 20)
    flags = ["--max-steps", 2, "--max-seq-length", 32, "--learning-rate", "1e-3", "--rank-pattern", "q_proj=4", "--r", 2]
    flags += ["--target-modules", "q_proj,v_proj", "--init-lora-weights", "gaussian", "--no-double-quant"]
    run("train", "--model", stories, "--data", data, "--output-dir", tmp_path / "a", *flags)
    run("train", "--config", tmp_path / "a" / "config.yaml", "--output-dir", tmp_path / "b")
    a, b = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab")
    assert a == b
