"""Work that gives way: a refresh beside a stream leaves the processors to the stream's micro-batches."""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

import torch

T = TypeVar("T")
NICER: Final = 10
"""By how much such work is nicer than its process."""


def gently(work: Callable[[], T]) -> T:
    """Do ``work`` in a thread of lower priority, which computes in one thread only; returns what it returns.

    Where threads have no priority of their own (it is Linux that gives them one), only the second is true.
    """
    done: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            with contextlib.suppress(OSError, AttributeError):
                me = threading.get_native_id()
                os.setpriority(os.PRIO_PROCESS, me, min(os.getpriority(os.PRIO_PROCESS, me) + NICER, 19))
            torch.set_num_threads(1)
            done.set_result(context.run(work))
        except BaseException as error:
            done.set_exception(error)

    before = torch.get_num_threads()
    threading.Thread(target=run, daemon=True, name="refresh").start()  # daemon: a stop does not wait for it
    try:
        return done.result()
    finally:
        torch.set_num_threads(before)
