"""One process of a training on toys, started by a launcher: WORKER REQUEST.json."""

import atexit
import ctypes
import json
import signal
import sys
from datetime import timedelta
from pathlib import Path

END_WITH_PARENT = 1  # PR_SET_PDEATHSIG: a launcher that a test kills must not leave its processes

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    # As on a machine without it, which none of our own packages needs.
    sys.modules["transformers"] = None  # type: ignore[assignment]
    import torch

    from launch.supervision import leave
    from pipeline.training import engine
    from tests.ledger import train_accounted
    from tests.training_toys import toy_config, toy_fit

    def tell_whether_joined() -> None:
        joined = torch.distributed.is_initialized()
        sys.stdout.write("ends in its process group\n" if joined else "ends on its own\n")

    destroy = torch.distributed.destroy_process_group

    def leave_telling_timeouts() -> None:
        groups = torch.distributed.distributed_c10d._world.pg_map
        backends = (group._get_backend(torch.device("cpu")) for group in groups)
        limits = sorted({str(backend.options._timeout) for backend in backends})
        sys.stdout.write(f"{len(groups)} groups wait {' or '.join(limits)}\n")
        destroy()

    torch.distributed.destroy_process_group = leave_telling_timeouts
    engine.TIMEOUT = timedelta(minutes=7)  # another than torch's own
    ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
    atexit.register(tell_whether_joined)  # runs after those that are registered later
    request = json.loads(Path(sys.argv[1]).read_text())
    for name, training in request.items():
        if "ledger" in training:
            train_accounted(**training)
            continue
        _, trained = toy_fit(
            Path(training["folder"]),
            config=toy_config(**training.get("config", {})),
            normalises=training.get("normalises", False),
            is_ipt=training.get("is_ipt", False),
            poisoned_steps=tuple(training.get("poisoned_steps", ())),
            **training.get("runtime", {}),
        )
        place = f"rank {trained.place.rank} of {trained.place.world_size}"
        watched = ("torch", "deepspeed", "tensorboard", "transformers")
        heavy = [each for each in watched if sys.modules.get(each)]
        # One write, or the lines of the ranks mix.
        sys.stdout.write(f"{name} done as {place}, imported: {', '.join(heavy)}\n")
        sys.stdout.flush()
    leave(0)
