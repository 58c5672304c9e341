"""
A decorator: each call of a function takes its own locks, on paths that may come from its arguments.

It imports the core and no joblib: a child that unpickles a locked function gets nothing else.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, Unpack, cast

from nfsrwlock.options import LockOptions, refuse_unknown
from nfsrwlock_core import LockSet, traced_as

from .guarding import Guard, Limits, Paths, TaskGuard, several

PathsOrFunction = Paths | Callable[..., Paths]
#: What the guard of a call is made with, of the call's arguments.
_PathsOfCall = Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _name_of(func: Callable[..., Any]) -> str:
    return str(getattr(func, "__qualname__", None) or type(func).__qualname__)


def _paths_of(func: Callable[..., Any], wanted: dict[str, Any]) -> _PathsOfCall:
    # A function of a call's arguments that gives the paths that are wanted, by parameters of guard().
    signature = inspect.signature(func)
    asks = {name: _asking(paths, signature, name) for name, paths in wanted.items()}

    def paths_of_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{_name_of(func)}(): {error}") from None
        bound.apply_defaults()
        given = dict(bound.arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name)
        return {name: ask(given) for name, ask in asks.items()}

    return paths_of_call


def _asking(paths: Any, signature: inspect.Signature, name: str) -> Callable[[dict[str, Any]], Any]:
    # A function of the arguments by their names, of which it passes on those that `paths` asks for by these names.
    if not callable(paths):
        return lambda given: paths
    try:
        wanted = inspect.signature(paths)
    except ValueError:
        raise TypeError(
            f"{name}= must be a function with named parameters, got {paths!r}; put it into a lambda"
        ) from None
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for parameter in wanted.parameters.values():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise TypeError(f"{name}= must be a function of named arguments, and it has *{parameter.name}")
        missing = parameter.name not in signature.parameters and not takes_all
        if missing and parameter.default is inspect.Parameter.empty:
            known = ", ".join(signature.parameters) or "none"
            raise TypeError(
                f"{name}= asks for an argument {parameter.name!r}, which the locked function does not have: {known}"
            )

    def ask(given: dict[str, Any]) -> Any:
        bound = inspect.BoundArguments(wanted, {name: given[name] for name in wanted.parameters if name in given})
        bound.apply_defaults()
        return paths(*bound.args, **bound.kwargs)

    return ask


def locked(
    *,
    read: PathsOrFunction = (),
    write: PathsOrFunction = (),
    limited: Limits | Callable[..., Limits] | None = None,
    **options: Unpack[LockOptions],
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """
    Let each call of a function hold locks while it runs.

    .. code-block:: python

       @locked(read="/nfs/ref", write=lambda i: f"/nfs/out/{i}")
       def work(i): ...

    It works on functions, methods and coroutine functions, and below joblib with every backend: each call takes locks
    of its own, in whatever process or thread it runs. What the same thread or task holds already, by :func:`guard` or
    another locked function, is not taken again.

    :param read: paths to lock shared: one, several, or a function that gives them, called with those arguments of the
        call that have the names of its parameters
    :param write: paths to lock exclusively, likewise
    :param limited: paths to lock shared, each with how many may hold it at a time, likewise
    :param options: settings of the locks, see :class:`SoftReadWriteLock`; ``timeout`` counts for all of them together
    :raises TypeError: if what it decorates is no function, or a generator function (its body runs after the call); if a
        path function asks for an argument that the function does not have; if an option is unknown
    :raises ValueError: if there is no path

    A call raises what the function raises, and what :func:`guard` raises when it is entered and left. It raises
    :class:`TypeError` if a function that is no coroutine function returns a coroutine.
    """
    refuse_unknown(options, "locked()")
    # Once, because an iterator would be used up by the first call.
    wanted: dict[str, Any] = {
        "read": read if callable(read) else tuple(several(read, "read")),
        "write": write if callable(write) else tuple(several(write, "write")),
        "limited": limited if callable(limited) else dict(limited or {}),
    }
    if not any(wanted.values()):
        raise ValueError("locked() needs read=, write= or limited=, a path to lock")
    # Wrong settings and paths raise at once; where all paths come from arguments, with any path.
    fixed = {name: paths for name, paths in wanted.items() if paths and not callable(paths)}
    LockSet(**fixed or {"read": "any"}, **options)

    def decorate(func: Callable[_P, _R]) -> Callable[_P, _R]:
        if isinstance(func, staticmethod | classmethod):
            raise TypeError(f"put @locked below @{type(func).__name__}, next to the function")
        if isinstance(func, type):
            raise TypeError(f"@locked decorates functions, not classes: put it on the methods of {func.__name__}")
        if not callable(func):
            raise TypeError(f"@locked decorates functions, not {type(func).__name__}")
        if _is(func, inspect.isgeneratorfunction) or _is(func, inspect.isasyncgenfunction):
            raise TypeError("a generator runs after the call that makes it; use guard() in its body")
        paths = _paths_of(func, wanted)
        wrapper = _coroutine if _is(func, inspect.iscoroutinefunction) else _function
        return cast("Callable[_P, _R]", wrapper(func, paths, options))

    return decorate


def _is(func: Callable[..., Any], kind: Callable[[Any], bool]) -> bool:
    # An object that can be called is what its method is: a cached coroutine function, say.
    return kind(func) or kind(inspect.getattr_static(func, "__call__", None))


def _function(func: Callable[..., Any], paths: _PathsOfCall, options: LockOptions) -> Callable[..., Any]:
    @functools.wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        with traced_as(function=_name_of(func)), Guard(**paths(args, kwargs), options=options):
            result = func(*args, **kwargs)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(
                    f"{_name_of(func)}() returned a coroutine, which would run after the locks are given back; "
                    "put @locked on an async function"
                )
            return result

    return call


def _coroutine(func: Callable[..., Any], paths: _PathsOfCall, options: LockOptions) -> Callable[..., Any]:
    @functools.wraps(func)
    async def call(*args: Any, **kwargs: Any) -> Any:
        with traced_as(function=_name_of(func)):
            async with TaskGuard(**paths(args, kwargs), options=options):
                return await func(*args, **kwargs)

    return call
