"""What all test files share: the modules' folder on the path, one thread, a fixed hypothesis."""

import sys
from pathlib import Path

import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
torch.set_num_threads(1)
# the same examples on every run, nothing written to disk, no verdict by the clock
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")
