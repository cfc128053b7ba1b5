import os
from pathlib import Path

import pytest

# before anything imports Triton, whose functions become interpreted ones when they are defined
os.environ["TRITON_INTERPRET"] = "1"

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data beside the project; tests that need it skip without it."""
    if not DATA.is_dir():
        pytest.skip(f"real data are not here: {DATA.name} is no folder beside the project")
    return DATA
