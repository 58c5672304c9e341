"""
Runs joblib's own tests of Memory with ours in its place: `python joblib_own_tests.py [pytest arguments]`.

joblib's tests of coroutines want a plugin that this project does without; a loop for each test is all they need.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys

import joblib
import joblib.memory
import pytest

from nfsrwlock.joblib import Memory

joblib.memory.Memory = joblib.Memory = Memory


class Coroutines:
    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        if not inspect.iscoroutinefunction(pyfuncitem.obj):
            return None
        names = pyfuncitem._fixtureinfo.argnames
        asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> object:
        if not inspect.iscoroutinefunction(fixturedef.func):
            return None
        names = fixturedef.argnames
        value = asyncio.run(fixturedef.func(**{name: request.getfixturevalue(name) for name in names}))
        fixturedef.cached_result = (value, fixturedef.cache_key(request), None)
        return value


if __name__ == "__main__":
    tests = os.path.join(os.path.dirname(joblib.__file__), "test")
    files = [os.path.join(tests, name) for name in ("test_memory.py", "test_memory_async.py")]
    plain = ["-c", os.devnull, "--rootdir", tests, "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:timeout"]
    sys.exit(pytest.main([*files, *plain, *sys.argv[1:]], plugins=[Coroutines()]))
