"""`accelerate launch launch/pretrain.py CONFIG`: the pretrain stage, in every process that the
launcher starts. Its inputs must be done; `python -m launch run CONFIG` makes them."""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python puts launch/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.stage import run_one
from launch.supervision import leave

if __name__ == "__main__":
    leave(run_one(sys.argv[1:], stage_name="pretrain"))
