"""Batch normalisation in several processes: every rank has the mean of what all have gathered."""

from collections.abc import Callable

import pytest
import torch
from launching import Launched

from tests.training_toys import FINAL, TASKS, everything, sample, toy_model


def _plain_training() -> dict[str, torch.Tensor]:
    """The two ranks one after the other in one process, each normalising its half of the batch."""
    torch.set_num_threads(1)
    model = toy_model(normalises=True)
    norm = model.body[1]
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(12):
        adam.param_groups[0]["lr"] = 1e-2 if step < 8 else 1e-3
        adam.zero_grad()
        before = norm.running_mean.clone(), norm.running_var.clone()
        gathered = []
        for rank in (0, 1):
            for buffer, value in zip((norm.running_mean, norm.running_var), before, strict=True):
                buffer.copy_(value)
            numbers = range(step * 4 + rank * 2, step * 4 + rank * 2 + 2)
            pairs = {task: [sample(task, number) for number in numbers] for task in TASKS}
            images = {
                task: torch.stack([x / 255 if x.dtype == torch.uint8 else x for x, _ in each])
                for task, each in pairs.items()
            }
            losses = [
                (restored * 255 - torch.stack([clean for _, clean in pairs[task]])).abs().mean()
                for task, (restored, _) in model.forward_tasks(images).items()
            ]
            (torch.stack(losses).mean() / 2).backward()
            gathered.append((norm.running_mean.clone(), norm.running_var.clone()))
        for place, buffer in enumerate((norm.running_mean, norm.running_var)):
            buffer.copy_((gathered[0][place] + gathered[1][place]) / 2)
        adam.step()
    return model.state_dict()


@pytest.mark.parametrize(
    "engine",
    ["ddp", "zero1", *(pytest.param(f"zero{n}", marks=pytest.mark.slow) for n in (0, 2, 3))],
)
def test_running_statistics_are_the_mean_over_the_ranks(
    launched: Callable[[str, int], Launched], engine: str
) -> None:
    expected = _plain_training()

    found = everything(launched(engine, 2).folder / "normalised in all" / FINAL)

    assert found["weights/body.1.num_batches_tracked"] == 12
    assert expected["body.1.running_mean"].abs().max() > 0.01
    for name, value in expected.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found[f"weights/{name}"], value, rtol=1e-4, atol=1e-5)
