import shutil
from pathlib import Path

import numpy as np
import pytest
from demo_run import Run
from nginx_server import nginx


@pytest.mark.slow
def test_a_training_on_shards_of_a_bad_web_server_gives_the_same_weights(tmp_path: Path) -> None:
    run = Run(tmp_path)
    order = ("--set", "pretrain.data.lanes=2", "--set", "pretrain.data.window=1")
    run("run", "--until", "pretrain", *order)
    untouched = run.weights("pretrain")
    maps = "map $connection $fault { ~3$ 500; ~7$ bad; default 0; }"
    location = """
        limit_rate 4m;
        if ($fault = 500) { return 500; }
        if ($fault = bad) { root {folder}/bad; }
    """

    with nginx(tmp_path / "nginx", maps=maps, location=location) as server:
        for root in ("root", "bad"):
            shutil.copytree(run.folder, server.folder / root, dirs_exist_ok=True)
        for tar in (server.folder / "bad").rglob("*.tar"):
            tar.write_bytes(tar.read_bytes()[:-4096])
        for tar in run.folder.rglob("*.tar"):
            tar.unlink()
        shutil.rmtree(run.folder / "pretrain")
        elsewhere = {
            "shards_at": server.address,
            "shard_cache": tmp_path / "cache",
            "shard_cache_gib": 0.03,
            "workers": 1,
        }
        values = [f"--set=runtime.{key}={value}" for key, value in elsewhere.items()]
        run("run", "--until", "pretrain", *order, *values)
        faults = [status for _, status in server.answers() if status != "200"]

    fetched = run.weights("pretrain")
    assert fetched.keys() == untouched.keys()
    assert all(np.array_equal(fetched[name], untouched[name]) for name in untouched)
    assert faults
    assert not list(run.folder.rglob("*.tar"))
