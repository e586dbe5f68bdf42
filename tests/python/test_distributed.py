"""Training as several ranks of MPI: the bits of one process for any number of them, and an end in words whatever meets one."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_c.comm.communicator import SelfCommunicator
from lora_c.comm.launch import find_mpirun, mpirun_command, ranks_of
from lora_c.comm.launched import launched, seconds_of
from lora_c.comm.world import threads_of_rank
from lora_c.errors import ConfigError, LoraCError
from lora_c.training.callbacks import Callbacks
from lora_c.training.distributed import division, raise_together

RANKS = Path(__file__).with_name("rank_moments.py")
STEPS = 50
HEARTBEAT = 4.0


def missing_mpi() -> str:
    """Why no ranks can be started; empty where they can."""
    try:
        import mpi4py  # noqa: F401

        find_mpirun()
    except (ImportError, ConfigError) as error:
        return str(error)
    return ""


needs_mpi = pytest.mark.skipif(bool(missing_mpi()), reason=f"needs mpi4py and mpirun: {missing_mpi()}")


@pytest.fixture(scope="module")
def place(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and data."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny.write(folder / "model", tiny.config, tiny.tensors(tiny.config))
    answers = [" ".join(f"w{5 + i + j}" for j in range(1 + i % 7)) for i in range(40)]
    records = [{"prompt": f"w{3 + i} w{4 + i} ", "completion": answer} for i, answer in enumerate(answers)]
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def arguments(place: Path, out: Path, *more: str, steps: int = STEPS, save: int = 25, method: str = "lora") -> list[str]:
    common = (
        "--model", place / "model", "--data", place / "data.jsonl", "--output", out, "--max-steps", steps, "--method", method,
        "--per-device-train-batch-size", 2, "--gradient-accumulation-steps", 5, "--lora-dropout", 0.1,
        "--learning-rate", "1e-2", "--val-fraction", 0.2, "--eval-steps", 10, "--eval-batch-tokens", 16, "--save-steps", save,
        "--samples", 0,
    )  # fmt: skip
    return ["train", *map(str, common), *more]


def run(size: int, arguments: list[str], event: str = "", rank: int = 0, at: int = 0) -> subprocess.CompletedProcess[str]:
    """Run lora-c as so many ranks; size 0: without MPI."""
    command = [sys.executable, str(RANKS), event, str(rank), str(at), *arguments]
    if size > 0:
        command = mpirun_command(size, command)[0]
    env = os.environ | {"LORA_C_NUM_THREADS": "1", "LORA_C_HEARTBEAT_SECONDS": str(HEARTBEAT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=110, env=env)


def digest(out: Path) -> str:
    return blake2b((out / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def alone(place: Path) -> Callable[..., tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Return what one process makes with a precision: digest of the adapter, run.json's result, lines of metrics."""
    known: dict[str, Any] = {}

    def of(precision: str, method: str = "lora") -> Any:
        key = precision, method
        if key not in known:
            out = place / f"alone-{precision}-{method}"
            done = run(0, arguments(place, out, "--precision", precision, method=method))
            assert done.returncode == 0, done.stderr
            known[key] = digest(out), json.loads((out / "run.json").read_text())["result"], losses(out)
        return known[key]

    return of


def losses(out: Path) -> list[dict[str, Any]]:
    """What of metrics.jsonl is no time."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = ("tokens_per_second", "elapsed_seconds", "peak_memory_bytes")
    return [{name: value for name, value in record.items() if name not in measured} for record in records]


@needs_mpi
@pytest.mark.parametrize(
    ("size", "precision", "method"),
    [(2, "fast", "qlora"), (3, "exact", "lora"), (4, "fast", "lora"), (8, "exact", "qlora")],
)
def test_any_number_of_ranks_gives_the_bits_of_one(
    place: Path, tmp_path: Path, alone: Callable[..., Any], size: int, precision: str, method: str
) -> None:
    expected, one, lines = alone(precision, method)
    done = run(size, arguments(place, tmp_path, "--precision", precision, method=method))
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path) == expected and losses(tmp_path) == lines
    result = json.loads((tmp_path / "run.json").read_text())["result"]
    assert result["world_size"] == size == len(result["ranks"])
    # Nobody trains the whole alone: what the ranks have done adds up to what one process does.
    for name in ("micro_batches", "tokens"):
        assert sum(rank[name] for rank in result["ranks"]) == one["ranks"][0][name]
    assert [rank["micro_batches"] > 0 for rank in result["ranks"]].count(True) == min(size, 5)
    assert all(rank["micro_batches"] <= -(-5 // size) * STEPS for rank in result["ranks"])
    assert sum(rank["pieces_ahead"] for rank in result["ranks"]) > 0  # the exchange goes on beside passes
    assert ("ranks have nothing to do" in done.stderr) == (size > 5)
    assert done.stderr.count(f"done      {STEPS} steps") == 1  # one of them prints


@needs_mpi
def test_launch_calls_mpirun(place: Path, tmp_path: Path, alone: Callable[..., Any]) -> None:
    command = [sys.executable, "-m", "lora_c", *arguments(place, tmp_path), "--launch", "mpi:2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0 and done.stderr.startswith("launch    2 ranks, threads of each: "), done.stderr
    assert digest(tmp_path) == alone("fast")[0]


@needs_mpi
@pytest.mark.parametrize(
    ("event", "rank", "said"),
    [
        ("kill", 1, r"signal 9|EXIT CODE: 9"),  # Open MPI's words, MPICH's
        ("stop", 1, "lora-c: rank 1 of 3 on "),
        ("stop", 0, "lora-c: rank 0 of 3 on "),
        ("raise", 2, "RuntimeError: this rank has failed"),
        ("full disk", 0, "no checkpoint of step 16: "),
    ],
)
def test_what_meets_one_rank_ends_all_of_them_in_words(
    place: Path, tmp_path: Path, alone: Callable[..., Any], event: str, rank: int, said: str
) -> None:
    began = time.monotonic()
    done = run(3, arguments(place, tmp_path, save=4), event, rank, at=11 if event == "full disk" else 17)
    assert time.monotonic() - began < 60
    assert done.returncode != 0 and re.search(said, done.stderr + done.stdout), done.stderr
    if event in ("raise", "full disk"):
        assert f"lora-c: rank {rank} of 3 on {os.uname().nodename}: " in done.stderr
    again = run(2, arguments(place, tmp_path, "--resume"))
    assert again.returncode == 0 and "resumed   from" in again.stderr, again.stderr
    assert digest(tmp_path) == alone("fast")[0]


def test_what_a_callback_of_rank_0_raises_is_said_by_the_others() -> None:
    error = ValueError("not good")
    for rank, raised in ((0, ValueError), (1, LoraCError)):
        callbacks = Callbacks()
        callbacks.error = error if rank == 0 else None
        others = SimpleNamespace(all_gather=lambda own: [own or "ValueError: not good", None])
        with pytest.raises(raised, match="not good") as caught:
            raise_together(SimpleNamespace(comm=others, callbacks=callbacks))  # type: ignore[arg-type]
        assert (caught.value is error) == (rank == 0)
    raise_together(SimpleNamespace(comm=SelfCommunicator(), callbacks=Callbacks()))  # type: ignore[arg-type]


SCRIPT = """
from lora_c.comm import start_world
comm = start_world()
if comm.rank == 1:
    raise MemoryError("no room")
comm.barrier()
"""


@needs_mpi
def test_an_error_that_a_script_does_not_catch_ends_all_ranks() -> None:
    began = time.monotonic()
    command = mpirun_command(2, [sys.executable, "-c", SCRIPT])[0]
    env = os.environ | {"LORA_C_NUM_THREADS": "1", "LORA_C_HEARTBEAT_SECONDS": "60"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, env=env)
    assert done.returncode != 0 and "lora-c: rank 1 of 2 on " in done.stderr and "MemoryError: no room" in done.stderr
    assert "Traceback" in done.stderr and time.monotonic() - began < 40  # not the heartbeat


@needs_mpi
def test_ranks_of_a_node_hold_one_base(place: Path, tmp_path: Path, on_cpu: None) -> None:  # in memory of the host
    done = run(2, arguments(place, tmp_path, steps=4), "pages", rank=1, at=5)
    assert done.returncode == 0, done.stderr
    pages = json.loads(done.stderr.partition("pages ")[2].splitlines()[0])
    assert pages["Rss"] >= 16 and pages["Pss"] <= 0.6 * pages["Rss"], pages  # the other half is rank 0's
    assert "its own copy" not in done.stderr


@needs_mpi
@pytest.mark.parametrize("other", ["--learning-rate 0.5", "--val-fraction 0.25"])
def test_ranks_that_are_not_alike_are_refused_before_the_first_step(place: Path, tmp_path: Path, other: str) -> None:
    name = other.split()[0].strip("-").replace("-", "_")
    done = run(2, arguments(place, tmp_path), other, rank=1)
    assert done.returncode == 2 and "expected what rank 0 on" in done.stderr and name in done.stderr, done.stderr
    assert "lora-c: rank 0 of 2" in done.stderr and "rank 1 on " in done.stderr
    assert not list(tmp_path.glob("checkpoint-*"))


RANDOM = int(os.environ.get("LORA_C_RANK_FAILURES") or 1)  # more by make check-ranks


@needs_mpi
@pytest.mark.parametrize("seed", range(RANDOM))
def test_at_any_moment(place: Path, tmp_path: Path, alone: Callable[..., Any], seed: int) -> None:
    draw = random.Random(seed)
    event = ("kill", "stop", "raise", "full disk", "--learning-rate 0.5")[seed % 5]
    size, again = draw.sample((2, 3, 4), 2)
    rank = 0 if event == "full disk" else draw.randrange(1 if event.startswith("--") else 0, size)
    at = draw.randrange(1, 31)  # every rank of 4 has more passes
    began = time.monotonic()
    done = run(size, arguments(place, tmp_path, save=3), event, rank, at)
    took = time.monotonic() - began
    print(f"{event}: rank {rank} of {size}, pass {at}: {took:.1f} s; resumed with {again}")
    assert done.returncode != 0 and took < 60 and ("lora-c: rank " in done.stderr or event == "kill"), done.stderr
    resumed = run(again, arguments(place, tmp_path, "--resume", "auto"))
    assert resumed.returncode == 0, resumed.stderr
    assert digest(tmp_path) == alone("fast")[0]


# --- without MPI ---


def test_micro_batches_are_divided_without_gaps() -> None:
    for n in range(1, 20):
        for size in range(1, 12):
            parts = division(n, size)
            assert [i for first, last in parts for i in range(first, last)] == list(range(n))
            assert max(last - first for first, last in parts) == -(-n // size)


def test_ranks_are_found_in_the_environment_alone() -> None:
    assert launched({}) is None and launched({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}) is None
    assert launched({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}) == ("Open MPI", 3, 4)
    assert launched({"PMI_SIZE": "2", "PMI_RANK": "1"}) == ("MPICH", 1, 2)
    assert launched({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}) == ("Slurm", 5, 8)
    assert launched({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None  # the script of sbatch is one process
    assert launched({"PMI_SIZE": "two", "PMI_RANK": "1"}) is None


def test_threads_are_an_equal_share_of_the_cpus_of_a_node() -> None:
    assert threads_of_rank("a", [("a", {0, 1, 2, 3}), ("a", {0, 1, 2, 3}), ("b", {0})]) == 2
    assert threads_of_rank("a", [("a", {0, 1}), ("a", {2, 3})]) == 2  # bound by the launcher
    assert threads_of_rank("a", [("a", {0})] * 3) == 1


@pytest.mark.parametrize("given", ["much", "-1", "nan", "inf"])
def test_waits_are_numbers_of_seconds(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    for value, seconds in (("", 30.0), ("0", 0.0), ("2.5", 2.5)):
        monkeypatch.setenv("LORA_C_HEARTBEAT_SECONDS", value)
        assert seconds_of("LORA_C_HEARTBEAT_SECONDS", 30.0) == seconds
    monkeypatch.setenv("LORA_C_HEARTBEAT_SECONDS", given)
    with pytest.raises(ConfigError, match=rf"^LORA_C_HEARTBEAT_SECONDS: expected seconds, 0 or more, got '{given}'; "):
        seconds_of("LORA_C_HEARTBEAT_SECONDS", 30.0)


@pytest.mark.parametrize("launch", ["2", "mpi", "mpi:0", "mpi:x", "mpi:-1", "nccl:2", "mpi:99999"])
def test_a_launch_that_is_none_is_refused(launch: str) -> None:
    with pytest.raises(ConfigError, match=r"^launch: expected mpi:N with 1 to 4096 ranks, got "):
        ranks_of(launch)


def test_without_mpi4py_the_way_out_is_said(place: Path, tmp_path: Path) -> None:
    (tmp_path / "mpi4py.py").write_text("raise ImportError('no mpi4py here')\n")
    env = os.environ | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "lora_c", *arguments(place, tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 2 and "pip install 'lora-c[mpi]'" in done.stderr and "Traceback" not in done.stderr


def test_a_process_that_is_alone_loads_no_mpi(place: Path, tmp_path: Path) -> None:
    code = "import sys\nfrom lora_c.cli import main\ntry:\n    main()\nfinally:\n    assert 'mpi4py' not in sys.modules"
    command = [sys.executable, "-c", code, *arguments(place, tmp_path, steps=2)]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
