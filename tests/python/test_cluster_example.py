"""The example for clusters, on two "machines": network namespaces with an address and a host name of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_c.comm.launch import find_mpirun

CLUSTER = Path(__file__).resolve().parents[2] / "examples" / "cluster"
# What mpirun starts its daemon on another machine with, in the place of ssh: a namespace whose number ends the address.
AGENT = '#!/bin/sh\nhost=$1\nshift\nexec ip netns exec {name}${{host##*.}} unshare -u sh -c "hostname node${{host##*.}}; $*"\n'


def ip(*arguments: object) -> None:
    subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[str]:
    """The begin of the names of two namespaces, which are on one network."""
    pytest.importorskip("mpi4py", reason="needs mpi4py")
    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("needs root and ip (iproute2) for network namespaces")
    name = f"lc{os.getpid()}n"
    try:
        for i in (1, 2):
            ip("netns", "add", f"{name}{i}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("-n", f"{name}1", "link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", f"{name}2")
        for i in (1, 2):
            ip("-n", f"{name}{i}", "addr", "add", f"10.77.0.{i}/24", "dev", "eth1")
            for link in ("eth1", "lo"):
                ip("-n", f"{name}{i}", "link", "set", link, "up")
        yield name
    finally:
        for i in (1, 2):
            ip("netns", "del", f"{name}{i}")


def test_two_machines_give_the_bits_of_one(machines: str, tiny: Any, tmp_path: Path) -> None:
    tiny.write(tmp_path / "model", tiny.config, tiny.tensors(tiny.config))
    records = [{"prompt": f"w{3 + i} ", "completion": f"w{4 + i} w{5 + i}"} for i in range(20)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    agent = tmp_path / "agent"
    agent.write_text(AGENT.format(name=machines))
    agent.chmod(0o755)
    arguments = ["--model", tmp_path / "model", "--data", tmp_path / "data.jsonl", "--max-steps", 6, "--method", "lora"]
    arguments += ["--per-device-train-batch-size", 2, "--gradient-accumulation-steps", 4, "--samples", 0, "--output"]
    lora_c = Path(sys.executable).parent / "lora-c"
    env = os.environ | {
        "MPIRUN": find_mpirun(), "LORA_C": str(lora_c), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_ALLOW_RUN_AS_ROOT": "1", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PRTE_MCA_plm_ssh_agent": str(agent),
        "OMPI_MCA_btl": "self,tcp", "OMPI_MCA_pml": "ob1",
    }  # fmt: skip
    script = ["ip", "netns", "exec", f"{machines}1", "sh", CLUSTER / "train.sh", CLUSTER / "hostfile"]
    several = subprocess.run(
        [*map(str, script), *map(str, arguments), str(tmp_path / "two")], capture_output=True, text=True, timeout=110, env=env
    )
    assert several.returncode == 0, several.stderr
    alone = subprocess.run(
        [str(lora_c), "train", *map(str, arguments), str(tmp_path / "one")], capture_output=True, timeout=60
    )
    assert alone.returncode == 0, alone.stderr
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    ranks = json.loads((tmp_path / "two" / "run.json").read_text())["result"]["ranks"]
    assert len({rank["host"] for rank in ranks}) == 2 and all(rank["micro_batches"] for rank in ranks)


def test_the_slurm_script_is_one() -> None:
    text = (CLUSTER / "train.sbatch").read_text()
    assert subprocess.run(["sh", "-n", CLUSTER / "train.sbatch"]).returncode == 0
    assert "#SBATCH --ntasks-per-node=1" in text and "srun --kill-on-bad-exit=1" in text and "--resume auto" in text
