"""Faults inside a script that is started as ever: Python imports this file by itself where its folder is on the path.

UPS_FAULTS is a JSON list of faults. Each names a function (`at`, as module:Class.function), the number of its call that
it strikes (`call`, the first by default) and what happens there (`do`, a key of `ACTIONS`), ahead of the call or, with
`after`, when it has done. A fault with a `token` strikes only while that file exists, and takes it away: one strike
over all starts of a run.
"""

from __future__ import annotations

import datetime
import errno
import functools
import importlib.abc
import importlib.util
import json
import os
import resource
import sys
import threading
import time
from typing import Any


def _signal(fault: dict[str, Any], _: tuple[Any, ...]) -> None:
    os.kill(os.getpid(), fault["signal"])
    # The handler of a signal that can be caught runs in the main thread, which is this one or waits for nobody.
    time.sleep(fault.get("seconds", 0.0))


def _signal_later(fault: dict[str, Any], _: tuple[Any, ...]) -> None:
    threading.Timer(fault["seconds"], os.kill, (os.getpid(), fault["signal"])).start()


def _os_error(fault: dict[str, Any], _: tuple[Any, ...]) -> None:
    number = getattr(errno, fault["errno"])
    raise OSError(number, os.strerror(number))


def _out_of_memory(_: dict[str, Any], __: tuple[Any, ...]) -> None:
    import jax

    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4294967296 bytes.")


def _jump(fault: dict[str, Any], _: tuple[Any, ...]) -> None:
    """Shift every wall clock back by `seconds` from now on; the monotonic clocks stay unchanged."""
    seconds, true = fault["seconds"], datetime.datetime
    earlier = datetime.timedelta(seconds=seconds)
    now, now_ns, clock, clock_ns = time.time, time.time_ns, time.clock_gettime, time.clock_gettime_ns
    time.time = lambda: now() - seconds
    time.time_ns = lambda: now_ns() - int(seconds * 1e9)
    time.clock_gettime = lambda kind: clock(kind) - (seconds if kind == time.CLOCK_REALTIME else 0)
    time.clock_gettime_ns = lambda kind: clock_ns(kind) - (int(seconds * 1e9) if kind == time.CLOCK_REALTIME else 0)
    for name in ("gmtime", "localtime", "ctime"):
        original = getattr(time, name)
        setattr(time, name, lambda moment=None, original=original: original(time.time() if moment is None else moment))
    form = time.strftime
    time.strftime = lambda text, moment=None: form(text, time.localtime() if moment is None else moment)

    class Kind(type):
        def __instancecheck__(cls, item: object) -> bool:
            return isinstance(item, true)

    class Jumped(true, metaclass=Kind):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return true.now(tz) - earlier

        @classmethod
        def utcnow(cls) -> Any:
            return true.now(datetime.UTC).replace(tzinfo=None) - earlier

        @classmethod
        def today(cls) -> Any:
            return true.today() - earlier

    # Modules hold the class itself, which lets nothing be set on it.
    for module in [*sys.modules.values()]:
        for name, value in [*getattr(module, "__dict__", {}).items()]:
            if value is true:
                setattr(module, name, Jumped)


def _limit_files(fault: dict[str, Any], _: tuple[Any, ...]) -> None:
    """No file may grow beyond `bytes` from now on; compiled programs are kept by then."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], fault["bytes"]))


def _memory_error(_: dict[str, Any], __: tuple[Any, ...]) -> None:
    """Raise NumPy's error for an array that is larger than the memory."""
    import numpy as np

    np.empty(2**59)


def _full_file(_: dict[str, Any], __: tuple[Any, ...]) -> None:
    """The curve that a process appends to lies on a disk that is full."""
    full = os.open("/dev/full", os.O_WRONLY)
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            name = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
        if name.endswith("/metrics.jsonl"):
            os.dup2(full, number)
    os.close(full)


ACTIONS = {
    "signal": _signal,
    "signal_later": _signal_later,
    "sleep": lambda fault, _: time.sleep(fault["seconds"]),
    "os_error": _os_error,
    "out_of_memory": _out_of_memory,
    "memory_error": _memory_error,
    "jump": _jump,
    "full_file": _full_file,
    "limit_files": _limit_files,
}


def _nan_fields(fault: dict[str, Any], result: Any, arguments: tuple[Any, ...]) -> Any:
    """Batches of the numbers `batches` hold NaN."""
    for rows in _rows_of(fault["batches"], result, arguments):
        result["fields"][rows] = float("nan")
    return result


def _mark(fault: dict[str, Any], result: Any, arguments: tuple[Any, ...]) -> Any:
    """Batches of the numbers `batches` bear a trajectory that there is not, by which `nan_gradients` knows them."""
    for rows in _rows_of(fault["batches"], result, arguments):
        result["trajectory_id"][rows] = -1
    return result


def _rows_of(wanted: list[int], result: Any, arguments: tuple[Any, ...]) -> list[slice]:
    """Where the batches of these numbers lie among those that were read as one."""
    first, count = arguments[2:4]
    size = len(result["mask"]) // count
    return [slice((n - first) * size, (n - first + 1) * size) for n in wanted if first <= n < first + count]


def _nan_gradients(_: dict[str, Any], result: Any, arguments: tuple[Any, ...]) -> Any:
    """A function that takes gradients gives NaN for those of a marked batch; its loss stays finite."""

    def gradients(params: Any, batch: Any, *more: Any, **named: Any) -> Any:
        import jax
        import jax.numpy as jnp

        value, grads = result(params, batch, *more, **named)
        factor = jnp.where(jnp.any(batch.trajectory_id == -1), jnp.nan, 1.0)
        return value, jax.tree.map(lambda leaf: leaf * factor, grads)

    return gradients


CHANGES = {"nan_fields": _nan_fields, "mark": _mark, "nan_gradients": _nan_gradients}


def _faulty(function: Any, fault: dict[str, Any]) -> Any:
    """The function with the fault before it, behind it, or in what it gives back."""
    calls = 0

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if fault["do"] in CHANGES:
            return CHANGES[fault["do"]](fault, function(*arguments, **named), arguments)
        struck, after = calls == fault.get("call", 1) and _strikes(fault), fault.get("after", False)
        if struck and not after:
            ACTIONS[fault["do"]](fault, arguments)
        result = function(*arguments, **named)
        if struck and after:
            ACTIONS[fault["do"]](fault, arguments)
        return result

    return wrapped


def _strikes(fault: dict[str, Any]) -> bool:
    if "token" not in fault:
        return True
    try:
        os.unlink(fault["token"])
    except FileNotFoundError:
        return False
    return True


def _strike(module: Any, fault: dict[str, Any]) -> None:
    *path, last = fault["at"].split(":")[1].split(".")
    owner = functools.reduce(getattr, path, module)
    if fault["do"] == "defaults":
        getattr(owner, last).__kwdefaults__.update(fault["values"])
        return
    setattr(owner, last, _faulty(getattr(owner, last), fault))


class _Finder(importlib.abc.MetaPathFinder):
    """Lets a module be imported as ever, and its faults follow."""

    def __init__(self, faults: list[dict[str, Any]]) -> None:
        self._faults: dict[str, list[dict[str, Any]]] = {}
        for fault in faults:
            self._faults.setdefault(fault["at"].split(":")[0], []).append(fault)

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        faults = self._faults.pop(name, None)
        if faults is None:
            return None
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def followed(module: Any) -> None:
            execute(module)
            for fault in faults:
                _strike(module, fault)

        spec.loader.exec_module = followed  # type: ignore[method-assign]
        return spec


def _forbid_writing(folder: str) -> None:
    """Python can open, make, rename and delete nothing below the folder, as on a file system that is read-only."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            changes = isinstance(arguments[2], int) and arguments[2] & writing
        else:
            changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
        if changes and isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(folder):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(arguments[0]))

    sys.addaudithook(refuse)


if "UPS_FAULTS" in os.environ:
    _all = json.loads(os.environ["UPS_FAULTS"])
    sys.meta_path.insert(0, _Finder([fault for fault in _all if "at" in fault]))
    for _fault in _all:
        if _fault["do"] == "read_only":
            _forbid_writing(_fault["folder"])
