"""What may lie beside the checkout: photographs, benchmarks, outputs of the official IPT."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"
DATA, BENCHMARKS = SHARED / "data", SHARED / "data" / "benchmarks"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no shared/data on this machine")
