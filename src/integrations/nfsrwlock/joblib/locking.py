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

from .guarding import Guard, Paths, TaskGuard, several, wishes_of

PathsOrFunction = Paths | Callable[..., Paths]

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Rule:
    """Which paths a call locks."""

    def __init__(self, func: Callable[..., Any], read: PathsOrFunction, write: PathsOrFunction) -> None:
        self._name = _name_of(func)
        self._signature = inspect.signature(func)
        self._read = _chosen(read, self._signature, "read")
        self._write = _chosen(write, self._signature, "write")

    def paths(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Paths, Paths]:
        """Return the paths to read and to write."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}(): {error}") from None
        bound.apply_defaults()
        given: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                given |= value
            else:
                given[name] = value
        return _asked(self._read, given), _asked(self._write, given)


def _name_of(func: Callable[..., Any]) -> str:
    return str(getattr(func, "__qualname__", None) or type(func).__qualname__)


def _chosen(paths: PathsOrFunction, signature: inspect.Signature, name: str) -> Any:
    # A function of some of the arguments, by their names, with these names; or the paths themselves.
    if not callable(paths):
        return paths
    try:
        wanted = inspect.signature(paths).parameters.values()
    except ValueError:
        raise TypeError(
            f"{name}= must be a function with named parameters, got {paths!r}; put it into a lambda"
        ) from None
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for parameter in wanted:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise TypeError(f"{name}= must be a function of named arguments, and it has *{parameter.name}")
        missing = parameter.name not in signature.parameters and not takes_all
        if missing and parameter.default is inspect.Parameter.empty:
            known = ", ".join(signature.parameters) or "none"
            raise TypeError(
                f"{name}= asks for an argument {parameter.name!r}, which the locked function does not have: {known}"
            )
    return _FromArguments(paths, tuple(wanted))


class _FromArguments:
    def __init__(self, function: Callable[..., Paths], parameters: tuple[inspect.Parameter, ...]) -> None:
        self._function = function
        self._parameters = parameters

    def __call__(self, given: dict[str, Any]) -> Paths:
        in_order: list[Any] = []
        named: dict[str, Any] = {}
        for parameter in self._parameters:
            name = parameter.name
            if parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
                named |= {name: given[name]} if name in given else {}
            elif name in given or parameter.default is not inspect.Parameter.empty:
                in_order.append(given.get(name, parameter.default))
        return self._function(*in_order, **named)


def _asked(paths: Any, given: dict[str, Any]) -> Paths:
    return cast("Paths", paths(given) if isinstance(paths, _FromArguments) else paths)


def locked(
    *, read: PathsOrFunction = (), write: PathsOrFunction = (), **options: Unpack[LockOptions]
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
    :param options: settings of the locks, see :class:`SoftReadWriteLock`; ``timeout`` counts for all of them together
    :raises TypeError: if what it decorates is no function, or a generator function (its body runs after the call); if a
        path function asks for an argument that the function does not have; if an option is unknown
    :raises ValueError: if there is no path

    A call raises what the function raises, and what :func:`guard` raises when it is entered and left. It raises
    :class:`TypeError` if a function that is no coroutine function returns a coroutine.
    """
    refuse_unknown(dict(options), "locked()")
    # Once, because an iterator would be used up by the first call.
    shared = read if callable(read) else tuple(several(read, "read"))
    exclusive = write if callable(write) else tuple(several(write, "write"))
    if shared == () and exclusive == ():
        raise ValueError("locked() needs read= or write=, a path to lock")
    # Wrong settings and paths are told at once; where all paths come from arguments, with any path.
    fixed = [path for paths in (shared, exclusive) if not callable(paths) for path in paths]
    wishes_of(fixed or "any", (), options)

    def decorate(func: Callable[_P, _R]) -> Callable[_P, _R]:
        if isinstance(func, staticmethod | classmethod):
            raise TypeError(f"put @locked below @{type(func).__name__}, next to the function")
        if isinstance(func, type):
            raise TypeError(f"@locked decorates functions, not classes: put it on the methods of {func.__name__}")
        if not callable(func):
            raise TypeError(f"@locked decorates functions, not {type(func).__name__}")
        if _is(func, inspect.isgeneratorfunction) or _is(func, inspect.isasyncgenfunction):
            raise TypeError("a generator runs after the call that makes it; use guard() in its body")
        rule = _Rule(func, shared, exclusive)
        wrapper = _coroutine if _is(func, inspect.iscoroutinefunction) else _function
        return cast("Callable[_P, _R]", wrapper(func, rule, options))

    return decorate


def _is(func: Callable[..., Any], kind: Callable[[Any], bool]) -> bool:
    # An object that can be called is what its method is: a cached coroutine function, say.
    return kind(func) or kind(inspect.getattr_static(func, "__call__", None))


def _function(func: Callable[..., Any], rule: _Rule, options: LockOptions) -> Callable[..., Any]:
    @functools.wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        with Guard(*rule.paths(args, kwargs), options):
            result = func(*args, **kwargs)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(
                    f"{_name_of(func)}() returned a coroutine, which would run after the locks are given back; "
                    "put @locked on an async function"
                )
            return result

    return call


def _coroutine(func: Callable[..., Any], rule: _Rule, options: LockOptions) -> Callable[..., Any]:
    @functools.wraps(func)
    async def call(*args: Any, **kwargs: Any) -> Any:
        async with TaskGuard(*rule.paths(args, kwargs), options):
            return await func(*args, **kwargs)

    return call
