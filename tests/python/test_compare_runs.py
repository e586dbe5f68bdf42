"""`lora-c compare`: what has run is not run again, what fails is tried again, and kill -9 changes no bit."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_lines import called, environment, interrupted, killed_and_called, kills, least_hits, make_workplace

from lora_c.cli.own_rows import own_rows
from lora_c.comparison import compare as module
from lora_c.comparison.compare import compare
from lora_c.comparison.costs import latency_of, swap_seconds
from lora_c.comparison.load_times import measure_loading
from lora_c.comparison.processes import JobFailedError, run_job
from lora_c.comparison.rows import ROWS, Row
from lora_c.errors import ConfigError, DataError
from lora_c.runs.lock import run_lock

# --- the loop, with jobs that are done at once ---------------------------------------------------------------------------


class Jobs:
    """Does jobs in the place of processes: each row has its seed as its loss; `broken` are rows whose process ends."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Any]] = []
        self.shared: dict[str, Any] = {"data (digest)": "a"}
        self.broken: set[str] = set()

    def __call__(self, name: str, folder: Path, job: dict[str, Any], result: str = "result.json") -> dict[str, Any]:
        row = folder.parent.name if job["kind"] == "row" else job["kind"]
        self.done.append((row, job.get("seed")))
        if row in self.broken:
            raise JobFailedError("ended by signal 9")
        folder.mkdir(parents=True, exist_ok=True)
        found = {"results": {"eval_loss": 1.0 + job.get("seed", 0)}, "costs": {}}
        if job["kind"] == "row":
            found = {"row": job["row"], "seed": job["seed"], **found}
        (folder / "result.json").write_text(json.dumps(found))
        return self.shared if result != "result.json" else found


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    jobs = Jobs()
    monkeypatch.setattr(module, "run_job", jobs)
    return jobs


def rows(*names: str) -> dict[str, Row]:
    return {name: ROWS[name] for name in names}


def test_what_has_run_is_not_run_again(jobs: Jobs, tmp_path: Path) -> None:
    first = compare("m", {}, rows("head", "qlora"), [0, 1], tmp_path)
    assert jobs.done == [("base", None), ("head", 0), ("qlora", 0), ("head", 1), ("qlora", 1), ("loading", None)]
    assert first.rows["head"].by_seed("results", "eval_loss") == {0: 1.0, 1: 2.0}
    jobs.done.clear()
    again = compare("m", {}, rows("head", "qlora"), [0, 1], tmp_path)
    assert jobs.done == [("base", None)] and again == first  # which says what the rows share
    jobs.done.clear()
    more = compare("m", {}, rows("full"), [0], tmp_path)
    assert jobs.done == [("base", None), ("full", 0)] and list(more.rows) == ["head", "qlora", "full"]


def test_a_process_that_fails_does_not_end_the_others_and_is_tried_again(jobs: Jobs, tmp_path: Path) -> None:
    jobs.broken = {"head"}
    record = compare("m", {}, rows("head", "qlora"), [0], tmp_path)
    assert record.rows["head"].problem == "ended by signal 9" and record.rows["qlora"].runs
    assert json.loads((tmp_path / "compare.json").read_text())["rows"][0]["problem"] == "ended by signal 9"
    jobs.broken.clear()
    jobs.done.clear()
    record = compare("m", {}, rows("head", "qlora"), [0], tmp_path)
    assert ("head", 0) in jobs.done and ("qlora", 0) not in jobs.done and not record.rows["head"].problem


def test_another_comparison_in_the_folder_is_refused_by_name(jobs: Jobs, tmp_path: Path) -> None:
    compare("m", {}, rows("head"), [0], tmp_path)
    jobs.shared = {"data (digest)": "b"}
    with pytest.raises(ConfigError, match=r"output_dir: .*compare.json' of another one \(data \(digest\)\)"):
        compare("m", {}, rows("head"), [0], tmp_path)
    jobs.done.clear()
    compare("m", {}, rows("head"), [0], tmp_path, overwrite=True)
    assert jobs.done == [("base", None), ("head", 0), ("loading", None)]


def test_a_row_that_was_another_is_refused(jobs: Jobs, tmp_path: Path) -> None:
    compare("m", {}, rows("head"), [0], tmp_path)
    with pytest.raises(ConfigError, match="rows: expected 'head' as it ran in .*seed-0'"):
        compare("m", {}, {"head": ROWS["full"]}, [0], tmp_path)


def test_what_the_base_refuses_is_raised_as_what_it_is(jobs: Jobs, tmp_path: Path) -> None:
    jobs.shared = {"refused": "data.jsonl:3: expected text", "error": "DataError"}
    with pytest.raises(DataError, match="data.jsonl:3"):
        compare("m", {}, rows("head"), [0], tmp_path)


def test_a_process_without_a_result_says_how_it_ended(tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match=r"ended with code 1; its last words: KeyError: 'nothing' \(all in .*log.txt"):
        run_job("lora_c.cli.compare_process", tmp_path, {"kind": "nothing"})


def test_the_last_words_of_a_process_keep_their_way_out(tmp_path: Path) -> None:
    script = "from lora_c.errors import FitError\nraise FitError('memory: ' + 'x' * 400 + '; --recompute layer')"
    (tmp_path / "refusing.py").write_text(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(JobFailedError, match="last words: memory: x{400}; --recompute layer "):
            run_job("refusing", tmp_path / "job", {})


def test_a_lock_waits_for_a_run_that_ends(tmp_path: Path) -> None:
    import fcntl
    import os
    import threading

    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="no other run writes into"), run_lock(tmp_path, patience=0.1):
        pass
    threading.Timer(0.2, lambda: os.close(handle)).start()
    with run_lock(tmp_path, patience=30.0):
        other = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(OSError, match="temporarily unavailable"):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)


# --- what is measured of a model -----------------------------------------------------------------------------------------


def test_latency_of_a_model_without_and_with_an_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    from lora_c import PrefixTuningConfig, load_model

    model = load_model(tiny_model_dir, progress=False)
    assert list(latency_of(model)) == ["unmerged"]
    model.add_adapter(r=2)
    found = latency_of(model)
    assert (
        found.keys() == {"base", "unmerged", "merged", "merged_logit_difference"} and found["merged_logit_difference"] < 1e-5
    )
    model.save_adapter(tmp_path / "a")
    seconds = swap_seconds(model, tmp_path / "a")
    assert seconds is not None and seconds > 0 and model.adapter_names == [model.active_adapter]
    other = load_model(tiny_model_dir, progress=False)
    other.add_adapter(PrefixTuningConfig(num_virtual_tokens=7))
    found = latency_of(other)
    assert "virtual tokens" in found["not_merged"] and "merged" not in found and found["unmerged"] > 0


def test_the_memory_of_a_process_is_its_own() -> None:
    import numpy as np

    held = np.ones(300 << 20, np.uint8)  # of this process, which starts the other
    words = "from lora_c.comparison.costs import peak_rss_bytes; print(peak_rss_bytes())"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, env=environment(), check=True)
    assert 10 << 20 < int(done.stdout) < 250 << 20 and held.any()


def test_a_base_is_loaded_from_files_of_each_type(tiny_model_dir: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    found = measure_loading(str(tiny_model_dir), copies)
    assert list(found) == ["float32", "float16", "bfloat16"] and not list(copies.iterdir())
    assert all(one["seconds"] > 0 and one["quantize_seconds"] > 0 for one in found.values())
    assert found["float32"]["bytes"] > 1.5 * found["float16"]["bytes"] > found["bfloat16"]["bytes"]


# --- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_workplace(tmp_path_factory.mktemp("w"))
    (place / "own.txt").write_text("The box was full of nuts. Mia counted the nuts: two.\n")
    return place


WORDS = (
    "compare --model model --data chat.jsonl --val-fraction 0.2 --max-steps 9 --rows lora-r2,full --seeds 1 "
    "--no-loading --base-text own.txt --lr 1e-3 --batch-size 2"
).split()  # fmt: skip


def results(folder: Path) -> Any:
    values = json.loads((folder / "compare.json").read_text())
    assert all(run["costs"]["peak_rss_bytes"] > 1e7 for row in values["rows"] for run in row["runs"])
    return values["run"], values["base"]["results"], [[run["results"] for run in row["runs"]] for row in values["rows"]]


def test_killed_at_any_moment_it_goes_on_with_the_same_bits(workplace: Path) -> None:
    count, moments = kills(3), random.Random(7)
    words = [*WORDS, "--max-steps", str(9 if count < 10 else 120 * count)]
    whole = called(workplace, [*words, "--output-dir", "whole"])
    assert whole.returncode == 0, whole.stderr
    times = [moments.uniform(1.5, 5.0) for _ in range(count)]
    done = killed_and_called(workplace, [*words, "--output-dir", "killed"], times)
    print(f"{done.hits} of {count} processes were killed at work")
    assert done.returncode == 0 and done.hits >= least_hits(count), done.stderr
    found = results(workplace / "killed")
    assert found == results(workplace / "whole") and [len(row) for row in found[2]] == [1, 1]
    lora, full = found[2][0][0], found[2][1][0]
    assert (lora["trained_parameters"], full["trained_parameters"]) == (24_320, 1_049_984) and lora["ranks"] == [2]
    assert full["learning_rate"] == pytest.approx(1e-4) and full["checkpoint_bytes"] > 10 * lora["checkpoint_bytes"]
    assert lora["gap"] == lora["eval_loss"] - lora["train_loss"] and lora["curve"][-1]["eval_loss"] == lora["eval_loss"]
    assert lora["base_text_loss"] != found[1]["base_text_loss"]
    assert not list((workplace / "killed").glob("compare-runs/*/*/checkpoint-*"))
    assert {"compare.html", "losses.png", "curves.png", "costs.png"} <= {file.name for file in (workplace / "whole").iterdir()}
    assert "advice    " in whole.stdout and "row       full, seed 0: held-out loss" in whole.stderr


def test_a_row_is_the_run_that_train_makes(workplace: Path) -> None:
    words = "--model model --data chat.jsonl --val-fraction 0.2 --max-steps 3 --batch-size 2".split()
    done = called(workplace, ["compare", *words, "--rows", "qlora", "--seeds", "1", "--no-loading", "--output-dir", "k"])
    assert done.returncode == 0, done.stderr
    done = called(workplace, ["train", *words, "--output-dir", "t", "--json"])
    assert done.returncode == 0, done.stderr
    run = json.loads((workplace / "k/compare.json").read_text())["rows"][0]["runs"][0]["results"]
    assert run["eval_loss"] == json.loads(done.stdout)["eval_loss"]


def test_where_every_row_fails_the_command_fails(workplace: Path) -> None:
    words = [*WORDS, "--rows", "full", "--max-steps", "1", "--output-dir", "small"]
    limited = ["sh", "-c", 'ulimit -f 200; exec "$@"', "sh", sys.executable, "-m", "lora_c", *words]  # blocks: a full disk
    done = subprocess.run(limited, cwd=workplace, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "advice    No row has a held-out loss" in done.stdout, done.stderr
    assert called(workplace, words).returncode == 0


def test_rows_of_ones_own_change_what_their_file_says(workplace: Path) -> None:
    text = "wide:\n  r: 3\n  lr: 1e-3\n  title: three\nfew-tokens:\n  peft-type: prompt_tuning\n"
    (workplace / "rows.yaml").write_text(text)
    words = "compare --model model --data chat.jsonl --val-fraction 0.2 --max-steps 1 --seeds 1 --no-loading".split()
    done = called(workplace, [*words, "--row-file", "rows.yaml", "--rows", "wide,few-tokens", "--output-dir", "o"])
    assert done.returncode == 0, done.stderr
    wide, few = json.loads((workplace / "o/compare.json").read_text())["rows"]
    assert wide["title"] == "three" and wide["runs"][0]["results"]["ranks"] == [3]
    assert wide["runs"][0]["results"]["learning_rate"] == 1e-3
    assert few["runs"][0]["results"]["trained_parameters"] == 20 * 128


@pytest.mark.parametrize(("text", "said"), [
    ("head:\n  r: 3", "1: expected a name of letters, digits, - and _ that no row has, got 'head'"),
    ("wide:\n  r: 0", "wide: r: expected greater than 0"),
    ("lora-r8:\n  r: 3", "that no row has, got 'lora-r8'"), ("x: [", "row_file: expected YAML in"),
    ("x:\n  seed: 3", "expected options that rows may change, got 'seed', which is alike in all of them"),
    ("x:\n  max-length: 30", "got 'max-length', which is alike"), ("x:\n  early_stopping_patience: 1", "is alike in all"),
    ("a/b:\n  r: 3", "got 'a/b'"), ("\nx: 3", "2: x: expected options below it"),
    ("x:\n  max_steps: 3", "x: expected options that rows may change, got 'max_steps'"),
    ("x:\n  ranc: 3", "x: expected options of lora-c train that rows may change, got 'ranc', did you mean 'rank'?"),
    ("x:\n  r: many", "x: r: expected"), ("x:\n  peft_type: lorra", "did you mean 'LORA'"),
])  # fmt: skip
def test_a_file_of_rows_that_is_wrong_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        own_rows(str(tmp_path / "rows.yaml"))
    assert said in str(caught.value)


def test_classifiers_are_compared_by_their_answers(workplace: Path) -> None:
    colours = ("red", "green", "blue")
    records = [{"text": f"The box was {colours[i % 3]}.", "label": colours[i % 3]} for i in range(24)]
    (workplace / "labels.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    words = (
        "compare --model model --data labels.jsonl --val-fraction 0.25 --task-type SEQ_CLS --max-steps 30 --lr 5e-3 --seeds 1"
    )
    done = called(workplace, [*words.split(), "--rows", "head,lora-r8,full,prompt", "--no-loading", "--output-dir", "c1"])
    assert done.returncode == 0, done.stderr
    values = json.loads((workplace / "c1/compare.json").read_text())
    head, lora, full, prompt = (row["runs"][0] for row in values["rows"])
    assert values["run"]["id2label"] == ["blue", "green", "red"]
    assert "expected a classifier whose score is trained" in prompt["refused"]
    trained = [run["results"]["trained_parameters"] for run in (head, lora, full)]
    assert trained == [3 * 128, 97_280 + 3 * 128, 1_049_984 + 3 * 128]  # the head of a language model is tied, a score is not
    assert all(0 <= run["results"]["scores"]["accuracy"] <= 1 for run in (values["base"], head, lora, full))
    assert lora["results"]["scores"]["accuracy"] == 1 and "token_seconds" not in lora["costs"]
    assert "accuracy" in done.stdout and "nats/text" in done.stdout and "nats/token" not in done.stdout
    done = called(workplace, [*words.split(), "--task", "f1", "--task-data", "labels.jsonl", "--output-dir", "c2"])
    assert done.returncode == 2 and "--task: expected none beside --task-type SEQ_CLS" in done.stderr


def test_a_row_that_cannot_be_says_why_and_the_others_go_on(workplace: Path) -> None:
    words = "--num-virtual-tokens 600 --max-steps 1 --rows prefix,head --seeds 1 --no-loading --output-dir r".split()
    done = called(workplace, ["compare", "--model", "model", "--data", "chat.jsonl", "--val-fraction", "0.2", *words])
    assert done.returncode == 0, done.stderr
    assert "row       prefix, seed 0: refused: num_virtual_tokens: expected fewer than the model's context" in done.stderr
    assert "advice    head (" in done.stdout and "no other row has one to compare it with" in done.stdout


def test_a_row_that_diverges_has_no_numbers_and_is_not_run_again(workplace: Path) -> None:
    words = (
        "compare --model model --data chat.jsonl --val-fraction 0.2 --max-steps 6 --lr 1e30 --rows lora-r1 --seeds 1".split()
    )
    for said in ("diverged (", "diverged (it had run)"):
        done = called(workplace, [*words, "--no-loading", "--output-dir", "d"])
        assert done.returncode == 0 and f"row       lora-r1, seed 0: {said}" in done.stderr, done.stderr
        assert "lora-r1: training: expected a finite" in done.stdout and "No row has a held-out loss" in done.stdout


def test_quick_on_own_data_holds_some_of_it_out(workplace: Path) -> None:
    words = "compare --quick --model model --data chat.jsonl --rows lora-r1 --max-steps 1 --no-loading --output-dir q".split()
    done = called(workplace, words)
    assert done.returncode == 0, done.stderr
    values = json.loads((workplace / "q/compare.json").read_text())
    assert values["run"]["val_fraction"] == 0.1 and len(values["rows"][0]["runs"]) == 1


def test_quick_alone_takes_the_model_that_ships_and_its_task(workplace: Path) -> None:
    words = "compare --quick --rows lora-r1,head --max-steps 1 --no-loading --output-dir q2".split()
    done = called(workplace, words)
    assert done.returncode == 0, done.stderr
    values = json.loads((workplace / "q2/compare.json").read_text())
    assert all("exact_match" in row["runs"][0]["results"]["scores"] for row in values["rows"])
    assert values["base"]["results"]["base_text_loss"] < 3 and "exact match" in done.stdout
    data = workplace / "q2/compare-data/held_out.jsonl"
    data.write_text(data.read_text().replace("?", "!"))
    words += ["--model", "demo", "--data", "q2/compare-data/train.jsonl", "--eval-data", "q2/compare-data/held_out.jsonl"]
    done = called(workplace, words)
    assert done.returncode == 2 and "of another one (" in done.stderr and "held-out data (digest)" in done.stderr


def test_a_budget_of_tokens_or_seconds_is_a_number_of_steps(workplace: Path) -> None:
    words = "compare --model model --data chat.jsonl --val-fraction 0.2 --rows lora-r1 --seeds 1 --no-loading".split()
    for budget, folder in ((["--budget-tokens", "2500"], "b1"), (["--budget-seconds", "0.2"], "b2")):
        done = called(workplace, [*words, *budget, "--output-dir", folder])
        assert done.returncode == 0, done.stderr
    tokens, seconds = (
        json.loads((workplace / f / "compare.json").read_text())["rows"][0]["runs"][0]["results"]["steps"]
        for f in ("b1", "b2")
    )
    kept = workplace / "b2/compare-runs/lora-r1/seed-0/steps.json"
    assert tokens > 1 and json.loads(kept.read_text()) == {"steps": seconds}


def test_a_signal_says_how_to_go_on(workplace: Path) -> None:
    done = interrupted(workplace, [*WORDS, "--output-dir", "stopped"], "row ")
    assert done.returncode == 130 and "go on     by the same command" in done.stderr and "Traceback" not in done.stderr


def test_settings_of_a_run_are_settings_of_a_comparison(workplace: Path) -> None:
    (workplace / "more.yaml").write_text("rows: [lora-r2, head]\nseeds: 1\nno_loading: true\nmodel: model\ndata: chat.jsonl\n"
                                         "val_fraction: 0.2\nmax_steps: 1\nlora_alpha: 32\n")  # fmt: skip
    done = called(workplace, ["compare", "--config", "more.yaml", "--output-dir", "f1"])
    assert done.returncode == 0, done.stderr
    values = json.loads((workplace / "f1/compare.json").read_text())
    assert [row["name"] for row in values["rows"]] == ["lora-r2", "head"] and values["run"]["adapter lora_alpha"] == 32
    words = "--config run/config.yaml --val-fraction 0.2 --rows head --seeds 1 --no-loading --output-dir f2".split()
    done = called(workplace, ["compare", *words])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("words", "code", "said"), [
    ("--data chat.jsonl", 2, "--eval-data: expected held-out data, by which rows are compared"),
    ("--val-fraction 0.2", 2, "--data: expected a path"), ("--data chat.jsonl --method lora", 2, "--method"),
    ("--data chat.jsonl --val-fraction 0.2 --rows lora-r5", 2, "--rows: expected names among"),
    ("--data chat.jsonl --val-fraction 0.2 --rows head,head", 2, "each once"),
    ("--data chat.jsonl --val-fraction 0.2 --seeds 0", 2, "--seeds"),
    ("--data chat.jsonl --val-fraction 0.2 --budget-seconds nan", 2, "expected a finite number, got nan"),
    ("--data chat.jsonl --val-fraction 0.2 --budget-seconds inf", 2, "expected a finite number, got inf"),
    ("--data chat.jsonl --val-fraction 0.2 --seed 9223372036854775807", 2, "--seed: expected one with 2 seeds above it"),
    ("--data chat.jsonl --val-fraction 0.2 --max-steps 2 --budget-tokens 9", 2, "--budget-tokens: expected one budget"),
    ("--data chat.jsonl --val-fraction 0.2 --max-new-tokens 9", 2, "--max-new-tokens: expected --task beside it"),
    ("--data chat.jsonl --val-fraction 0.2 --task exact-match", 2, "--task-data: expected the questions"),
    ("--data chat.jsonl --val-fraction 0.2 --base-text nowhere.txt --max-steps 1", 1, "nowhere.txt"),
    ("--data nowhere --val-fraction 0.2", 1, "nowhere"),
    ("--data - --val-fraction 0.2", 2, "--data: expected files, which every row reads, got standard input"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(workplace: Path, words: str, code: int, said: str) -> None:
    done = called(workplace, ["compare", "--model", "model", "--output-dir", "wrong", *words.split()])
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not (workplace / "wrong/compare.json").exists()
