"""One process of a training on toys, started by a launcher: WORKER REQUEST.json."""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    import torch

    from tests.training_toys import toy_config, toy_fit

    torch.set_num_threads(1)
    request = json.loads(Path(sys.argv[1]).read_text())
    for name, training in request.items():
        toy_fit(
            Path(training["folder"]),
            config=toy_config(**training.get("config", {})),
            normalises=training.get("normalises", False),
            poisoned_steps=tuple(training.get("poisoned_steps", ())),
            **training.get("runtime", {}),
        )
        heavy = [each for each in ("torch", "deepspeed", "tensorboard") if each in sys.modules]
        # One write, or the lines of the ranks mix.
        sys.stdout.write(f"{name} done, imported: {', '.join(heavy)}\n")
        sys.stdout.flush()
