"""What is planned of a run against what the run takes, each in a process of its own; `make bench-plan` has 16 of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lora_c as lc
from lora_c.demo.world import task
from lora_c.errors import ConfigError, FitError
from lora_c.gguf import write_model

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
RUNS = {
    "qlora": "--method qlora --max-seq-length 256",
    "lora_recompute": "--method lora --recompute layer --optim adamw_8bit",
    "full_bfloat16": "--method full --recompute none --activation-dtype bfloat16 --max-seq-length 384",
    "int8": "--method qlora --max-seq-length 384 --precision int8 --batch-size 4 --recompute none",
    "int8_activations": "--method qlora --max-seq-length 384 --precision int8 --activation-dtype int8 --batch-size 4",
    "head": "--method head --optim sgd --batch-size 8",
}
# Sets a limit on the addresses of the process, then runs a command.
LIMITED = """
import resource, sys
import lora_c._core
from lora_c.cli.commands import run
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv.pop(1)),) * 2)
sys.argv[0] = "lora-c"
run()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts that are longer than the context of the model that ships, 512 tokens."""
    file = tmp_path_factory.mktemp("texts") / "long.jsonl"
    texts = (" ".join(json.dumps(example) for example in task(seed, 40, 1)[0]) for seed in range(64))
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def lora_c(*words: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "lora_c", *words, "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", RUNS)
def test_the_memory_of_a_run_is_that_of_its_plan(data: Path, tmp_path: Path, name: str, on_cpu: None) -> None:
    words = [*RUNS[name].split(), "--model", "demo", "--data", str(data), "--max-steps", "2"]
    plan = lora_c("plan", *words, "--seconds", "0")
    ran = lora_c("train", *words, "--output-dir", str(tmp_path / "out"), "--samples", "0", "--save-steps", "0")
    assert plan["memory"]["total"] == pytest.approx(ran["peak_memory_bytes"], rel=0.05)
    assert plan["memory"]["total"] == sum(term["value"] for term in plan["memory"]["terms"])


def limited(room: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(room), *words], capture_output=True, text=True, timeout=300
    )  # fmt: skip


@pytest.mark.parametrize(
    ("room", "options", "change"),
    [
        (420, ["--batch-size", "64"], "--per-device-train-batch-size"),
        (800, ["--batch-size", "64", "--recompute", "none"], "--recompute layer"),
    ],
)
def test_a_run_that_cannot_fit_is_refused_and_the_change_runs(
    data: Path, tmp_path: Path, room: int, options: list[str], change: str, on_cpu: None
) -> None:
    out = tmp_path / "out"
    words = ["train", "--model", "demo", "--data", str(data), "--output-dir", str(out), "--max-steps", "1", "--samples", "0"]
    refused = limited(room * MIB, [*words, *options])
    assert refused.returncode == 1 and "Traceback" not in refused.stderr, refused.stderr
    line = refused.stderr.splitlines()[-1]
    assert line.startswith("lora-c: memory: expected a run within the ") and "MiB forecast" in line, line
    assert not out.exists() and "method " not in refused.stderr  # nothing was loaded, nothing written
    flags = line.partition("scratch ")[2].partition("; ")[2].partition(" makes it ")[0]
    assert flags.startswith(change)
    assert change not in options or options.remove(change) is None
    kept = options[:2] if change == "--recompute layer" else []
    done = limited(room * MIB, [*words, *kept, *flags.split()])
    assert done.returncode == 0, done.stderr
    assert (out / "adapter_model.safetensors").is_file()


def test_the_limits_of_the_process_bound_what_is_left() -> None:
    script = (
        "import resource, lora_c._core as c\n"
        "pages = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages + (300 << 20),) * 2)\n"
        "print(c.memory_left(), c.memory_info('cpu')['total'], pages)\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (256 << 20,) * 2)\n"
        "print(c.memory_left())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    (left, total, pages), (less,) = ([int(n) for n in line.split()] for line in done.stdout.splitlines())
    assert 290 * MIB < left <= 300 * MIB and total == pages + 300 * MIB and less < 256 * MIB


def test_a_change_is_the_cheapest_one_that_fits() -> None:
    from lora_c.configs import LoraConfig, TrainConfig
    from lora_c.planning import subject_of_shape
    from lora_c.planning.remedies import ROOM, least_forecast, refuse_what_cannot_fit, remedy

    config = TrainConfig(method="lora", recompute="none", per_device_train_batch_size=8, max_seq_length=512)
    subject = subject_of_shape("smollm2-135m", config, LoraConfig(r=8))
    whole = subject.forecast().total
    refuse_what_cannot_fit(subject, whole)  # just fits
    refuse_what_cannot_fit(subject, None)  # nobody knows
    for share, named in ((1.0, "attention"), (0.8, "layer")):
        with pytest.raises(FitError, match=f"--recompute {named} makes it"):
            refuse_what_cannot_fit(subject, int(share * whole) - 1)
    seen = []
    for share in (0.9, 0.6, 0.3, 0.15, 0.1, 0.06, 0.04, 0.03):
        found = remedy(subject, int(share * whole))
        if found is not None:
            changed = subject.with_config(config.model_copy(update=found.options))
            assert found.plan == least_forecast(changed) and found.plan.total <= ROOM * share * whole
            seen.append(set(found.options))
    assert seen[0] == {"recompute"} and len(seen[-1]) > 2
    assert {"per_device_train_batch_size", "gradient_accumulation_steps"} <= set().union(*seen)
    with pytest.raises(FitError, match="no change of recompute, .* makes it fit; a smaller model does"):
        refuse_what_cannot_fit(subject, 1 << 20)


def test_changes_of_rounded_activations() -> None:
    from lora_c.configs import LoraConfig, TrainConfig
    from lora_c.planning import subject_of_shape
    from lora_c.planning.remedies import ROOM, least_forecast, refuse_what_cannot_fit, remedy

    config = TrainConfig(method="lora", optim="sgd", per_device_train_batch_size=1, max_seq_length=512)
    subject = subject_of_shape("smollm2-135m", config, LoraConfig(r=8))
    least = least_forecast(subject).total  # auto computes layers again
    found = remedy(subject, int((least - (1 << 20)) / ROOM))
    assert found is not None and found.options == {"activation_dtype": "int8", "recompute": "layer"}
    rounded = subject.with_config(config.model_copy(update={"activation_dtype": "int8"}))
    with pytest.raises(FitError, match=r"--recompute attention makes it .* \(gradients rounded elsewhere, 5 to 10 % slower\)"):
        refuse_what_cannot_fit(rounded, least_forecast(rounded).total - 1)


def test_a_mapped_file_need_not_fit(llama_file: Callable[..., Path]) -> None:
    from lora_c.configs import LoraConfig, TrainConfig
    from lora_c.planning import subject_of_path
    from lora_c.planning.remedies import least_forecast, refuse_what_cannot_fit

    subject = subject_of_path(llama_file("Q8_0"), TrainConfig(method="qlora"), LoraConfig(r=2))
    least, mapped = least_forecast(subject).total, subject.model.mapped_bytes()
    assert 0 < mapped < subject.model.base_bytes()
    refuse_what_cannot_fit(subject, least - mapped)
    with pytest.raises(FitError):
        refuse_what_cannot_fit(subject, least - mapped - 1)
    dense = subject_of_path(llama_file(None), TrainConfig(method="lora"), LoraConfig(r=2))
    assert dense.model.mapped_bytes() == 0


def test_a_search_that_cannot_fit_is_refused_too(data: Path, tmp_path: Path, on_cpu: None) -> None:
    out = tmp_path / "out"
    words = ["sweep", "--model", "demo", "--data", str(data), "--val-fraction", "0.2", "--output-dir", str(out)]
    refused = limited(520 * MIB, [*words, "--max-steps", "81", "--batch-size", "51", "--recompute", "none"])
    assert refused.returncode == 1 and refused.stderr.splitlines()[-1].startswith("lora-c: memory: expected a run within the ")
    assert not out.exists()


def test_a_search_takes_no_more_addresses_than_a_run(data: Path, tmp_path: Path, on_cpu: None) -> None:
    """Of 400 MiB the forecast has 277: threads, and of a search the trials before, must not take the rest away."""
    words = ["--model", "demo", "--data", str(data), "--val-fraction", "0.2", "--max-steps", "3", "--batch-size", "16"]
    words += ["--recompute", "none"]
    for command in (["train", "--samples", "0"], ["sweep", "--trials", "3"]):
        done = limited(400 * MIB, [*command, *words, "--output-dir", str(tmp_path / command[0])])
        assert done.returncode == 0, done.stderr


def test_the_base_of_a_change_is_not_the_mapped_file(tmp_path: Path, llama_file: Callable[..., Path]) -> None:
    """A file in float16 is mapped, what qlora makes of it is not: such a change is named only where it fits itself."""
    from lora_c.configs import LoraConfig, TrainConfig
    from lora_c.planning import subject_of_path
    from lora_c.planning.remedies import ROOM, least_forecast, refuse_what_cannot_fit, remedy

    write_model(tmp_path / "half.gguf", lc.load_model(llama_file(None), progress=False), "F16")
    config = TrainConfig(method="lora", per_device_train_batch_size=1, max_seq_length=16, optim="sgd", recompute="layer")
    subject = subject_of_path(tmp_path / "half.gguf", config, LoraConfig(r=1))
    needed = least_forecast(subject).total - subject.model.mapped_bytes()
    quantized = subject.with_config(config.model_copy(update={"method": "qlora"}))
    assert needed < least_forecast(quantized).total - quantized.model.mapped_bytes()
    free = needed - 1  # too little for either
    assert ROOM * (free + subject.model.mapped_bytes()) > least_forecast(quantized).total
    assert remedy(subject, free, maps_files=True) is None
    with pytest.raises(FitError, match="no change of .* makes it fit"):
        refuse_what_cannot_fit(subject, free)


@pytest.mark.parametrize(("batch", "least"), [(3, 1), (6, 1), (7, 1), (96, 1)])
def test_every_micro_batch_that_makes_the_same_steps_is_tried(batch: int, least: int) -> None:
    from lora_c.configs import LoraConfig, TrainConfig
    from lora_c.planning import subject_of_shape
    from lora_c.planning.remedies import ROOM, remedy

    config = TrainConfig(method="lora", per_device_train_batch_size=batch, gradient_accumulation_steps=2, max_seq_length=512)
    subject = subject_of_shape("smollm2-135m", config, LoraConfig(r=8))
    one = {"per_device_train_batch_size": least, "gradient_accumulation_steps": 2 * batch}
    needed = subject.with_config(config.model_copy(update=one)).forecast(recompute="layer").total
    found = remedy(subject, int(needed / ROOM) + 1)
    assert found is not None and found.options == one
    assert found.options["per_device_train_batch_size"] * found.options["gradient_accumulation_steps"] == 2 * batch


def test_a_base_of_8_bits_is_told_of_4() -> None:
    from lora_c.configs import LoraConfig, TrainConfig
    from lora_c.planning import subject_of_shape
    from lora_c.planning.remedies import remedy

    config = TrainConfig(method="qlora", quant_type="q8_0", per_device_train_batch_size=1, optim="sgd")
    subject = subject_of_shape("llama-7b", config, LoraConfig(r=8))
    found = remedy(subject, 7 << 30)
    assert found is not None and found.options == {"quant_type": "nf4"} and found.plan.total < 5 << 30


def test_any_number_of_sequences_is_counted_without_a_list_of_them() -> None:
    from lora_c.configs import TrainConfig
    from lora_c.planning import subject_of_shape

    config = TrainConfig(method="head", per_device_train_batch_size=10**7, max_seq_length=64)
    subject = subject_of_shape("gpt2", config, None)
    assert subject.micro_batch() == (64 * 10**7, 10**7)
    huge = subject.with_config(subject.config.model_copy(update={"per_device_train_batch_size": 10**9}))
    with pytest.raises(ConfigError, match=r"at most 2\*\*31 - 1 tokens, got 1,000,000,000 sequences of 64; --gradient"):
        huge.forecast()


def test_data_are_cut_only_where_two_other_changes_do_not_do() -> None:
    from lora_c.configs import LoraConfig, TrainConfig
    from lora_c.planning import subject_of_shape
    from lora_c.planning.remedies import ROOM, remedy

    config = TrainConfig(method="lora", recompute="none", per_device_train_batch_size=6)
    subject = subject_of_shape("smollm2-135m", config, LoraConfig(r=8))
    milder = {"recompute": "layer", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 6}
    needed = subject.with_config(config.model_copy(update=milder)).forecast(recompute="layer").total
    found = remedy(subject, int(needed / ROOM) + 1)
    assert found is not None and found.options == milder
    less = remedy(subject, int(0.9 * needed / ROOM))
    assert less is not None and "max_seq_length" in less.options
