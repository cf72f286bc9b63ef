"""The trainings that the benchmark of training starts, and the program of each of their processes
where there are several: python benchmarks/training_ranks.py REQUEST.json"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

if __name__ == "__main__":  # run as a script, Python puts benchmarks/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.training_samples import CYCLE, Times, reopened, train, training_config
from pipeline.config import PretrainConfig, Runtime
from pipeline.model_configs import IPTSize

SIZES = {
    "small": IPTSize(features=12, encoder_layers=2, decoder_layers=2, attention_heads=4),
    "tiny": IPTSize(features=4, encoder_layers=1, decoder_layers=1, attention_heads=4),
}
NEVER = 10**9
ENGINES = ("ddp", "zero1")


@dataclass(frozen=True, kw_only=True)
class Request:
    size: str  # of SIZES
    micro_batch: int  # of each process
    steps: int  # that are timed
    processes: int = 1
    engine: str = "launcher"

    def config(self) -> PretrainConfig:
        batch = self.micro_batch * self.processes
        samples = batch * (CYCLE + self.steps)
        return training_config(batch=batch, samples=samples, precision="float32")

    def runtime(self, *, checkpoint_every: int = NEVER) -> Runtime:
        return Runtime.model_validate(
            {
                "workers": 1,
                "log_every_steps": CYCLE,
                "images_every_steps": NEVER,
                "checkpoint_every_steps": checkpoint_every,
                "keep_checkpoints": 2,
                "engine": self.engine,
            }
        )


def in_two_processes(folder: Path, request: Request, *, launches: int) -> dict[str, Times]:
    """Step times of rank 0 under each engine, launched in turns."""
    times = {engine: Times() for engine in ENGINES}
    for number in range(launches):
        for engine, found in times.items():
            target = folder / f"{engine}-{number}"
            target.mkdir()
            values = asdict(request) | {"engine": engine, "processes": 2}
            (target / "request.json").write_text(json.dumps(values))
            _launch(engine, target / "request.json")
            record = json.loads((target / "ticks.json").read_text())
            found.add(record["clock"], record["processor"])
            print(f"{engine}: {median(record['clock']):.3f} s", file=sys.stderr)
    return times


def _launch(engine: str, request: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if engine == "ddp":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", "2"]
        environment["ACCELERATE_USE_CPU"] = "true"
    else:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed"]
        command += ["--zero_stage", engine[-1], "--num_processes", "2", "--num_machines", "1"]
        command += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
        environment["DS_ACCELERATOR"] = "cpu"
    command += [str(Path(__file__).resolve()), str(request)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{engine}: {done.stderr[-3000:]}")


def main(path: Path) -> None:
    request = Request(**json.loads(path.read_text()))
    trained = train(
        reopened(path.parents[1] / "shards"),
        path.parent,
        size=SIZES[request.size],
        config=request.config(),
        runtime=request.runtime(),
    )
    if int(os.environ["RANK"]) == 0:
        ticks = trained.ticks
        record = {"clock": ticks.clock[CYCLE:], "processor": ticks.processor[CYCLE:]}
        (path.parent / "ticks.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
