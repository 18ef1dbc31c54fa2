"""Threads and processes that read samples."""

from __future__ import annotations

import os
import sys
import threading

import pytest
import torch

from fmeco.data.reading import Threads


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the threads of this process in /proc")
def test_no_thread_of_a_pool_outlives_it() -> None:
    """A loader worker that is forked while a thread ends inside MKL would get a lock that nobody opens."""
    window = torch.hann_window(200)

    def read(number: int) -> int:
        torch.stft(torch.full((1600,), float(number)), 256, 80, 200, window, return_complex=True)
        return threading.get_native_id()

    left = 0
    for _ in range(100):
        with Threads(2) as threads:
            ids = set(threads.map(read, range(8)))
        left += sum(os.path.exists(f"/proc/self/task/{number}") for number in ids)
    assert left == 0
