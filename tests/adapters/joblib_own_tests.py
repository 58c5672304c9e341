"""
Runs joblib's own tests of Memory with ours in its place: `python joblib_own_tests.py [pytest arguments]`.

joblib's tests of coroutines want a plugin that this project does without; a loop for each test is all they need.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import joblib
import joblib.memory
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from nfsrwlock.joblib import Memory
from own_tests import PLAIN, Coroutines

joblib.memory.Memory = joblib.Memory = Memory

if __name__ == "__main__":
    tests = os.path.join(os.path.dirname(joblib.__file__), "test")
    files = [os.path.join(tests, name) for name in ("test_memory.py", "test_memory_async.py")]
    sys.exit(pytest.main([*files, *PLAIN, "--rootdir", tests, *sys.argv[1:]], plugins=[Coroutines()]))
