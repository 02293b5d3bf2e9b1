"""What holds for every test: the modules' folder on the path, threads, a fixed hypothesis, and

pytest --shuffle 7        # files and their tests in a random order: none needs another
TEST_THREADS=2 pytest     # torch's threads; all holds with any number
pytest -m slow            # what is left out: more layouts, faults and sizes of what else is tested
"""

import random
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import THREADS  # noqa: E402  it needs the path

# the same examples on every run, nothing written to disk, no verdict by the clock
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


def pytest_addoption(parser) -> None:
    parser.addoption("--shuffle", type=int, help="seed of a random order")


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "cuda: needs an NVIDIA GPU")
    config.addinivalue_line("markers", "slow: left out unless `pytest -m slow` asks for it")


def pytest_collection_modifyitems(config, items: list) -> None:
    if config.getoption("--shuffle") is not None:
        rng = random.Random(config.getoption("--shuffle"))
        rng.shuffle(items)
        place = {file: i for i, file in enumerate(dict.fromkeys(item.path for item in items))}
        items.sort(key=lambda item: place[item.path])  # a file's fixtures are made once
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


@pytest.fixture(autouse=True)
def threads() -> None:
    """A run inside a test sets torch's number of threads, for good."""
    torch.set_num_threads(THREADS)


@pytest.fixture
def fp64():
    """Of all that is made without a dtype: weights, rewards, advantages."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
