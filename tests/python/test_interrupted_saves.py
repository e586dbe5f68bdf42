"""Saves that do not finish: kill -9 at any moment and a disk that fills up leave a folder that loads."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lora_c.files.atomic import atomic_folder, write_text
from lora_c.model.opening import load_model

IDS = np.arange(3, 20, dtype=np.int32)

SAVE_FOREVER = """
import sys
from lora_c.model.opening import load_model
model, out = load_model(sys.argv[1], progress=False), sys.argv[2]
for i in range(10**6):
    model.save(out, dtype=("float32", "bfloat16", "nf4")[i % 3], max_shard_bytes=20_000)
    print(i, flush=True)
"""
SAVE_ADAPTER_FOREVER = """
import sys
import numpy as np
from lora_c.model.opening import load_model
model, out = load_model(sys.argv[1], progress=False), sys.argv[2]
model.add_adapter(r=4)
for i in range(10**6):
    for parameter in model.trainable_parameters():
        parameter.write(np.full(parameter.shape, i % 5 + 1, np.float32))
    model.save_adapter(out)
    print(i, flush=True)
"""
SAVE_UNTIL_FULL = """
import resource, sys
from lora_c.errors import LoraCError
from lora_c.model.opening import load_model
model, out, limit = load_model(sys.argv[1], progress=False), sys.argv[2], int(sys.argv[3])
model.add_adapter(r=4)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # a write beyond it fails half way, as on a full disk
for save in (lambda: model.save_adapter(out + "/adapter"), lambda: model.merge(dtype="float32").save(out + "/model")):
    try:
        save()
    except LoraCError as error:
        print(error)
"""


SAVE_AND_WAIT = """
import sys
from lora_c.files.atomic import atomic_file, atomic_folder
with atomic_folder(sys.argv[1] + "/model") as folder, atomic_file(sys.argv[1] + "/one.gguf") as file:
    (folder / "half").write_text("x")
    (folder / "sub").mkdir()
    print("ready", flush=True)
    sys.stdin.read()
"""


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def kill_while_saving(code: str, *args: object, after: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process:
        for _ in range(3):
            assert process.stdout.readline()
        time.sleep(after)
        process.kill()


def test_kill_during_a_save_of_a_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = load_model(tiny_model_dir)
    model.save(out)
    (out / "notes.txt").write_text("mine")
    expected = {False: model.decoder.logits(IDS), True: load_model(tiny_model_dir, quantize="nf4").decoder.logits(IDS)}
    for i in range(3):
        kill_while_saving(SAVE_FOREVER, tiny_model_dir, out, after=0.0014 * i)
        again = load_model(out)
        assert leftovers(tmp_path) == []  # the load removed what the killed save left
        assert np.abs(again.decoder.logits(IDS) - expected[again.is_quantized]).max() < 0.1
        assert again.tokenizer.eos_token_id == 2 and (out / "notes.txt").read_text() == "mine"


def test_kill_during_a_save_of_an_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_dir)
    for i in range(2):
        kill_while_saving(SAVE_ADAPTER_FOREVER, tiny_model_dir, tmp_path / "out", after=0.0006 * i)
        model.load_adapter(tmp_path / "out")
        values = {float(value) for p in model.trainable_parameters() for value in np.unique(p.data)}
        assert len(values) == 1 and values < {1.0, 2.0, 3.0, 4.0, 5.0}  # all of one save
        model.delete_adapter()


@pytest.mark.parametrize("then", ["save", "load"])
def test_what_a_killed_save_left_is_removed_and_a_running_one_is_not(tiny_model_dir: Path, tmp_path: Path, then: str) -> None:
    place = tmp_path / "place"
    model = load_model(tiny_model_dir)
    model.save(place / "model")
    command = [sys.executable, "-c", SAVE_AND_WAIT, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        unfinished = leftovers(place)
        assert len(unfinished) == 2 and all(name.endswith(".part") for name in unfinished)
        load_model(place / "model")
        write_text(place / "one.gguf", "whole")
        assert leftovers(place) == unfinished  # its writer lives
        process.kill()
    (place / ".other.0123abcd.part").mkdir()  # of another name: not looked at
    if then == "save":
        model.save(place / "model")
    else:
        load_model(place / "model")
    write_text(place / "one.gguf", "whole")
    assert leftovers(place) == [".other.0123abcd.part"]
    assert (place / "one.gguf").read_text() == "whole" and load_model(place / "model").config == model.config


def test_subfolders_of_others_are_never_in_the_unfinished_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill right after the names changed hands finds everything in the new folder."""
    target = tmp_path / "out"
    (target / "checkpoint-1/deep").mkdir(parents=True)
    (target / "checkpoint-1/deep/state").write_text("state")
    (target / "link").symlink_to("checkpoint-1")
    (target / "old").write_text("old")

    def killed(path: Path, **options: object) -> None:
        raise KeyboardInterrupt

    with (
        monkeypatch.context() as patch,
        pytest.raises(KeyboardInterrupt),
        atomic_folder(target, {"old"}.__contains__) as folder,
    ):
        (folder / "new").write_text("new")
        patch.setattr("shutil.rmtree", killed)
    assert sorted(path.name for path in target.iterdir()) == ["checkpoint-1", "link", "new"]
    assert (target / "link/deep/state").read_text() == "state"


def test_without_hard_links_what_is_kept_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(1, "Operation not permitted")

    target = tmp_path / "out"
    (target / "checkpoint-1").mkdir(parents=True)
    (target / "checkpoint-1/state").write_text("state")
    (target / "notes").write_text("mine")
    monkeypatch.setattr("os.link", refuse)
    with atomic_folder(target, {"old"}.__contains__) as folder:
        (folder / "new").write_text("new")
    assert sorted(path.name for path in target.iterdir()) == ["checkpoint-1", "new", "notes"]
    assert (target / "checkpoint-1/state").read_text() == "state" and leftovers(tmp_path) == []


@pytest.mark.parametrize("limit", [0, 100, 5_000, 20_000, 60_000])
def test_full_disk_in_the_middle_of_a_file(tiny_model_dir: Path, tmp_path: Path, limit: int) -> None:
    model = load_model(tiny_model_dir)
    model.add_adapter(r=2)
    model.save_adapter(tmp_path / "adapter")
    model.merge(dtype="bfloat16").save(tmp_path / "model")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = subprocess.run(
        [sys.executable, "-c", SAVE_UNTIL_FULL, str(tiny_model_dir), str(tmp_path), str(limit)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    errors = done.stdout.splitlines()
    assert errors and all("expected room on the disk, got File too large" in line for line in errors)
    assert (tmp_path / "model") in {Path(line.partition(":")[0]) for line in errors}
    failed = {Path(line.partition(":")[0]).name for line in errors}
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert {p for p in after if p.name.startswith(".") or ".part" in str(p)} == set()
    for path, data in before.items():
        if path.parent.name in failed:
            assert after[path] == data
    load_model(tmp_path / "model")
    model.delete_adapter()
    model.load_adapter(tmp_path / "adapter")
