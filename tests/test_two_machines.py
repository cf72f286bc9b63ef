"""Two machines, which are two launchers on this one: the bits of one machine with two processes."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launching import TRAININGS, Launched, accelerate, command, environment

from tests.training_toys import FINAL, everything

NAMES = ("contrasted one", "contrasted all")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _machine(engine: str, rank: int, port: int) -> list[str]:
    """What starts the one process of this machine; a number of processes counts all machines."""
    if engine == "ddp":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        torchrun += ["--node_rank", str(rank), "--nproc_per_node", "1"]
        return [*torchrun, "--master_addr", "127.0.0.1", "--master_port", str(port)]
    launch = [*accelerate(engine, 2), "--num_machines", "2", "--machine_rank", str(rank)]
    launch += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    # Else it would look for the other machine by ssh.
    return [*launch, "--deepspeed_multinode_launcher", "standard"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero1", "ddp"])
def test_two_machines_are_the_two_ranks_of_one_training(
    launched: Callable[[str, int], Launched], tmp_path: Path, engine: str
) -> None:
    trainings = {name: TRAININGS[name] for name in NAMES}
    port = _free_port()
    machines = []
    try:
        for rank in (0, 1):
            starts = _machine(engine, rank, port)
            machines.append(
                subprocess.Popen(
                    command(starts, tmp_path, trainings),
                    env=environment(starts, tmp_path),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        outputs = [machine.communicate(timeout=180)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()

    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(outputs)
    for rank, output in enumerate(outputs):
        ends = [line.partition(",")[0] for line in output.splitlines() if " done as " in line]
        assert ends == [f"{name} done as rank {rank} of 2" for name in NAMES]
    for name in NAMES:
        expected = everything(launched(engine, 2).folder / name / FINAL)
        found = everything(tmp_path / name / FINAL)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[tensor], expected[tensor]) for tensor in expected)
