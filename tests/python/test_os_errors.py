"""What the system refuses is one line: the user's own name, what was expected, what was found, the way out."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import lora_c as lc
from lora_c.cli import cli
from lora_c.display.plot import plot_losses
from lora_c.errors import CheckpointError, LoraCError, SaveError
from lora_c.files.atomic import atomic_file, atomic_folder, write_json
from lora_c.files.os_errors import cannot_save, describe, make_folder
from lora_c.notices import LoraCWarning

COMMANDS = {
    "train": ("--model", "MODEL", "--data", "DATA", "--max-steps", 1, "--method", "lora", "--output-dir", "OUT"),
    "merge": ("--model", "MODEL", "--adapter", "ADAPTER", "--no-report", "--output-dir", "OUT"),
    "export": ("ADAPTER", "OUT", "--to", "peft", "--model", "MODEL"),
    "quantize": ("--model", "MODEL", "--output-dir", "OUT"),
}


def is_one_line(error: BaseException, *parts: str) -> bool:
    text = str(error)
    assert isinstance(error, LoraCError), error
    assert "[Errno" not in text and ".part" not in text and "lora-c-" not in text and "\n" not in text, text
    assert ": expected " in text and ", got" in text, text
    return all(part in text for part in parts)


@pytest.fixture
def inputs(tiny_model_dir: Path, tmp_path: Path) -> dict[str, Path]:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2)
    model.save_adapter(tmp_path / "adapter")
    (tmp_path / "d.txt").write_text("w3 w4 w5 w6 w7 w8 " * 20)
    return {"MODEL": tiny_model_dir, "ADAPTER": tmp_path / "adapter", "DATA": tmp_path / "d.txt"}


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("place", ["file", "file/below", "pipe", "loop", "loop/below", "/dev/null", "/proc/out", "n" * 300])
def test_a_place_that_cannot_be_written_is_named(inputs: dict[str, Path], tmp_path: Path, command: str, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    output = tmp_path / place
    words = [str(inputs.get(str(word), output if word == "OUT" else word)) for word in COMMANDS[command]]
    result = CliRunner().invoke(cli, [command, *words])
    assert result.exit_code != 0 and result.exception is not None
    assert is_one_line(result.exception, repr(str(output))[1:-1][:100] if len(place) < 9 else "got"), result.exception
    assert (tmp_path / "file").read_text() == "mine" and os.readlink(tmp_path / "loop") == "loop"


@pytest.mark.parametrize("call", ["open", "mkdir", "fsync", "replace", "rename", "link"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENAMETOOLONG,
                                    errno.EMFILE, errno.EBUSY, errno.ENOTDIR, errno.EXDEV])  # fmt: skip
def test_every_refusal_while_saving_is_one_line_and_leaves_what_was_there(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    out = tmp_path / "out"
    model = lc.load_model(tiny_model_dir, progress=False)
    model.save(out)
    write_json(tmp_path / "a.json", {})
    (out / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    real = getattr(os, call)

    def refuse(*args: object, **options: object) -> object:
        if any("lora-c-" in str(arg) for arg in args) or call == "fsync":
            raise OSError(number, os.strerror(number), args[0] if call != "fsync" else None)
        return real(*args, **options)

    errors = []
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        saves = (lambda: model.save(out), lambda: model.save(tmp_path / "new"), lambda: write_json(tmp_path / "a.json", []))
        for save in saves:
            try:
                save()
            except LoraCError as error:
                errors.append(error)
                assert isinstance(error, SaveError) and is_one_line(error, os.strerror(number), str(tmp_path))
    assert errors or call in ("link", "rename", "open")  # hard links are not needed; exchanging takes no os.rename
    assert {p.name: p.read_bytes() for p in out.iterdir()}.items() >= before.items()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_save_inside_of_a_save_shows_the_name_that_the_user_gave(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=f"^{tmp_path}/out/sub: "), atomic_folder(tmp_path / "out") as folder:
        (folder / "sub").write_text("a file")
        with atomic_folder(folder / "sub"):
            pass
    with pytest.raises(SaveError) as error, atomic_file(tmp_path / "x"):
        (tmp_path / "source").read_text()
    assert is_one_line(error.value, f"{tmp_path}/x: expected", f"(of {tmp_path}/source)")


def test_refusals_without_a_place_of_their_own_are_words_too() -> None:
    for error in (OSError(5, "Input/output error", "/a/.b.lora-c-0123abcd.part"), OSError(28, "No space left on device"),
                  OSError("text"), PermissionError(13, "Permission denied", b"/a/b"), TimeoutError()):  # fmt: skip
        assert "[Errno" not in describe(error) and "lora-c-" not in describe(error) and ", got " in describe(error)
        assert "[Errno" not in str(cannot_save("/a/b", error))
    with pytest.raises(SaveError, match="/dev/null/x: expected folders all the way to it, got Not a directory"):
        make_folder("/dev/null/x")


def test_metrics_that_cannot_be_written_end_no_run_that_has_begun(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trainer() -> lc.Trainer:
        model = lc.load_model(inputs["MODEL"], progress=False)
        model.add_adapter(r=2)
        data = lc.load_dataset(inputs["DATA"], model.tokenizer, max_seq_length=16)
        return lc.Trainer(model, data, lc.TrainConfig(output_dir=tmp_path / "out", max_steps=3, method="lora"))

    (tmp_path / "out/metrics.jsonl").mkdir(parents=True)
    with pytest.raises(SaveError, match="metrics.jsonl: expected a file or a free name, got a folder"):
        trainer().train()
    (tmp_path / "out/metrics.jsonl").rmdir()
    run = trainer()
    step = run._one_step

    def then_the_file_is_gone(*args: object) -> None:
        if (tmp_path / "out/metrics.jsonl").is_file():
            (tmp_path / "out/metrics.jsonl").unlink()
            (tmp_path / "out/metrics.jsonl").mkdir()
        step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "_one_step", then_the_file_is_gone)
    with pytest.warns(LoraCWarning, match="lines are missing from step 1 on .Is a directory.") as told:
        assert run.train().steps == 3
    assert len(told) == 1


def test_a_plot_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    history = [{"step": 1, "loss": 1.0}]
    (tmp_path / "loss.png").mkdir()
    with pytest.warns(LoraCWarning, match="loss.png: not drawn .*got a folder"):
        assert not plot_losses(history, tmp_path / "loss.png")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **options: 1 / 0)
    with pytest.warns(LoraCWarning, match="not drawn .division by zero"):
        assert not plot_losses(history, tmp_path / "b.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plot_losses(history, tmp_path / "c.png")  # which the first line of a run has said
    assert os.listdir(tmp_path) == ["loss.png"]


def test_a_result_that_cannot_be_saved_names_the_checkpoint(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lc.Model.save_adapter

    def full(self: object, path: object, **options: object) -> None:
        if Path(str(path)).name == "out":
            raise SaveError(f"{path}: expected room on the disk, got none")
        real(self, path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(lc.Model, "save_adapter", full)
    words = [str(inputs.get(str(word), tmp_path / "out" if word == "OUT" else word)) for word in COMMANDS["train"]]
    error = CliRunner().invoke(cli, ["train", *words]).exception
    assert error is not None and is_one_line(error, f"what was trained is in {tmp_path}/out/checkpoint-1")


def test_unreadable_inputs_are_words(tmp_path: Path, tiny_model_dir: Path, make_model: Callable[..., Path]) -> None:
    (tiny_model_dir / "config.json").unlink()
    (tiny_model_dir / "config.json").mkdir()
    with pytest.raises(CheckpointError) as error:
        lc.load_model(tiny_model_dir)
    assert is_one_line(error.value, "got a folder")
    tokenizer = lc.load_model(make_model("other"), progress=False).tokenizer
    (tmp_path / "x.jsonl.gz").write_text("no gzip")
    with pytest.raises(LoraCError) as other:
        lc.load_dataset(tmp_path / "x.jsonl.gz", tokenizer)
    assert is_one_line(other.value)


@pytest.mark.parametrize("command", [["--help"], ["inspect", "x"], ["train", "--model", "x", "--data", "y"]])
def test_ctrl_c_while_the_libraries_are_loaded_is_one_line(command: list[str]) -> None:
    """A signal at each of several moments, sent by an import itself: the place is certain."""
    code = (
        "import builtins, os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "wanted, real = sys.argv.pop(1), builtins.__import__\n"
        "def hooked(name, *args, **options):\n"
        "    if name == wanted: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *args, **options)\n"
        "builtins.__import__ = hooked\n"
        "from lora_c.cli import main\n"
        "main()\n"
    )
    for module in ("click", "numpy", "pydantic") if command[0] != "inspect" else ("click", "numpy"):
        done = subprocess.run([sys.executable, "-c", code, module, *command], capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        loaded = module == "click" or command != ["--help"]
        assert (done.returncode == 130) is loaded, (module, done)
        assert not loaded or done.stderr.strip() == "lora-c: stopped"


def test_ctrl_c_at_any_moment_of_the_start_shows_no_traceback(tmp_path: Path) -> None:
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from lora_c.cli import main\n"
    for i in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", start + "print(1, flush=True)\nmain()", "inspect", str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        time.sleep(0.02 + 0.07 * i)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err or err.count("File") == 1, err  # 1: before main has begun


@pytest.mark.parametrize("name", ["n" * 300, "loop", "file/below", "nothing"])
def test_an_input_that_is_none_is_one_line(inputs: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    model = lc.load_model(inputs["MODEL"], progress=False)
    for read in (lc.load_model, model.load_adapter, lambda path: lc.load_dataset(path, model.tokenizer)):
        with pytest.raises(LoraCError) as error:
            read(tmp_path / name)
        assert is_one_line(error.value)
