"""kill −9, eight writers, a full disk, torn files: a stored bar is never torn or lost, and the next run goes on."""

import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from longtape.core.clock import Interval
from longtape.core.errors import LongtapeError
from longtape.market import quality, storage
from longtape.market.partition import Appended
from longtape.market.store import Store
from tests.market.store_data import BTC, HOUR, START, make_bars, values_at

MINUTE = Interval.parse("1m")
FILE = "bybit/linear/BTCUSDT/1h/2024.parquet"


@pytest.fixture(scope="module")
def processes():
    """Processes forked from one that has imported the store but never used it: quick and safe."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longtape.market.store", "tests.market.store_data"])
    return context


def stored_rows(root, interval=HOUR) -> int:
    """How many bars are stored, after judging every one of them; they start at the first and have no hole."""
    frame = Store(root).read("BTCUSDT", interval).frame
    times = START + np.arange(frame.height) * interval.milliseconds
    assert frame.equals(values_at(times))
    return frame.height


def write_on(root: str, acknowledged) -> None:
    """Resume from the store and append pages for ever, saying after each how many bars are stored."""
    store = Store(root)
    last = store.last(BTC, MINUTE)
    done = 0 if last is None else (last - START) // MINUTE.milliseconds + 1
    acknowledged.send(done)
    rng = random.Random(done)
    while True:
        page = rng.randrange(1, 30_000)  # often over the end of a month, that is over two partitions
        store.append(make_bars(max(done - 50, 0), page, MINUTE))
        done = max(done, max(done - 50, 0) + page)
        acknowledged.send(done)


def kill_while_writing(processes, root, rng) -> int:
    """Start a writer, kill it at a random moment of its writing; gives the bars it had acknowledged."""
    receiver, sender = processes.Pipe(duplex=False)
    writer = processes.Process(target=write_on, args=(str(root), sender), daemon=True)
    writer.start()
    sender.close()
    acknowledged = receiver.recv()
    time.sleep(rng.uniform(0, 0.12))
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(30)
    assert writer.exitcode == -signal.SIGKILL
    try:
        while receiver.poll():
            acknowledged = receiver.recv()
    except EOFError:
        pass
    return acknowledged


def kill_often(processes, root, times: int) -> None:
    rng = random.Random(times)
    for _ in range(times):
        acknowledged = kill_while_writing(processes, root, rng)
        if acknowledged:
            assert stored_rows(root, MINUTE) >= acknowledged
        if acknowledged > 300_000:
            shutil.rmtree(root)
    store = Store(root)
    store.append(make_bars(0, 100_000, MINUTE))
    assert stored_rows(root, MINUTE) >= 100_000
    assert quality.check_stored(store, store.series()[0]).ok


def test_kill_9_at_a_score_of_moments(processes, tmp_path):
    kill_often(processes, tmp_path / "store", 20)


@pytest.mark.soak
def test_kill_9_at_two_hundred_moments(processes, tmp_path):
    kill_often(processes, tmp_path / "store", 200)


def test_a_partial_file_of_a_killed_writer_is_cleared_away(tmp_path):
    store = Store(tmp_path)
    store.append(make_bars(0, 10))
    left = tmp_path / "bybit/linear/BTCUSDT/1h/.2024.parquet.x1.partial"
    left.write_bytes(b"half")
    assert stored_rows(tmp_path) == 10
    store.append(make_bars(10, 10))
    assert not left.exists()
    assert stored_rows(tmp_path) == 20


def append_all(root: str, seed: int, results) -> None:
    """All pages of four years, in an order of one's own."""
    store, total = Store(root), Appended()
    pages = list(range(0, 4 * 8766, 876))
    random.Random(seed).shuffle(pages)
    for first in pages:
        total += store.append(make_bars(first, 900))
    results.put(total)


def test_eight_processes_append_to_one_symbol(processes, tmp_path):
    results = processes.Queue()
    writers = [
        processes.Process(target=append_all, args=(str(tmp_path), seed, results), daemon=True)
        for seed in range(8)
    ]
    for writer in writers:
        writer.start()
    counts = [results.get(timeout=120) for _ in writers]
    for writer in writers:
        writer.join(30)
    total = sum(counts, Appended())
    assert total.added == stored_rows(tmp_path) == 40 * 876 + 900  # each bar was added by one of them, once
    assert total.conflicts == 0
    assert total.added + total.duplicates == 8 * 41 * 900


def test_threads_of_one_process_append_to_one_symbol(tmp_path):
    store = Store(tmp_path)
    threads = [threading.Thread(target=store.append, args=(make_bars(i * 400, 500),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert stored_rows(tmp_path) == 3300


def test_a_lock_that_is_never_given_back_is_named(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.append(make_bars(0, 10))
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.05)
    with (
        store.storage.lock("bybit/linear/BTCUSDT/1h"),
        pytest.raises(LongtapeError, match="BTCUSDT/1h: another process has been writing here"),
    ):
        Store(tmp_path).append(make_bars(10, 10))
    assert store.append(make_bars(10, 10)).added == 10


class FailingDisk:
    """Every step of writing a file, counted; at the step of the given number, and halfway in its bytes, `fail` runs."""

    def __init__(self, patch, fail_at: int, fail) -> None:
        self.calls, self.fail_at, self.fail = 0, fail_at, fail
        for owner, name in (
            (os, "open"),
            (os, "mkdir"),
            (os, "replace"),
            (os, "fsync"),
            (tempfile, "mkstemp"),
        ):
            patch.setattr(owner, name, self.step(getattr(owner, name)))
        whole = Path.write_bytes
        patch.setattr(Path, "write_bytes", lambda path, data: self.write(whole, path, data))

    def is_due(self) -> bool:
        self.calls += 1
        return self.calls == self.fail_at

    def step(self, call):
        def maybe(*args, **kwargs):
            if self.is_due():
                self.fail()
            return call(*args, **kwargs)

        return maybe

    def write(self, whole, path, data):
        if self.is_due():
            whole(path, data[: len(data) // 2])
            self.fail()
        return whole(path, data)


def no_space():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def append_two_partitions(root) -> None:
    Store(root).append(make_bars(50, 10_000))


def message_of(call) -> str:
    """The error's text, or nothing where there was none."""
    try:
        call()
    except LongtapeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("stored", [0, 100])
def test_disk_full_at_every_step_of_an_append(tmp_path, monkeypatch, stored):
    for fail_at in range(1, 200):
        root = tmp_path / str(fail_at)
        if stored:
            Store(root).append(make_bars(0, stored))
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, fail_at, no_space)
            message = message_of(lambda root=root: append_two_partitions(root))
        if message:
            assert str(root) in message
            assert "full" in message or "No space left" in message
        else:
            assert len(Store(root).read("BTCUSDT", "1h")) == 10_000 + stored // 2
        if stored:
            assert stored_rows(root) in (100, 8784, 10_050)  # whole partitions only
        Store(root).append(make_bars(0, 10_050))
        assert stored_rows(root) == 10_050
        assert not list(root.rglob("*.partial"))
        if disk.calls < fail_at:
            break
    assert fail_at > 10, "hardly any step was made to fail"


def append_and_die(root: str, die_at: int) -> None:
    patch = pytest.MonkeyPatch()
    FailingDisk(patch, die_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    append_two_partitions(root)


def test_kill_9_at_every_step_of_an_append(processes, tmp_path):
    for die_at in range(1, 200):
        root = tmp_path / str(die_at)
        Store(root).append(make_bars(0, 100))
        writer = processes.Process(target=append_and_die, args=(str(root), die_at), daemon=True)
        writer.start()
        writer.join(60)
        assert stored_rows(root) in (100, 8784, 10_050)
        Store(root).append(make_bars(50, 10_000))
        assert stored_rows(root) == 10_050
        assert not list(root.rglob("*.partial"))
        if writer.exitcode == 0:
            break
        assert writer.exitcode == -signal.SIGKILL
    assert die_at > 10


def write_with_small_files(root: str, results) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
    try:
        Store(root).append(make_bars(0, 8000))
        results.put("nothing happened")
    except LongtapeError as error:
        results.put(str(error))


def test_the_system_refuses_to_write_on(processes, tmp_path):
    Store(tmp_path).append(make_bars(0, 100))
    results = processes.Queue()
    writer = processes.Process(target=write_with_small_files, args=(str(tmp_path), results), daemon=True)
    writer.start()
    message = results.get(timeout=60)
    writer.join(30)
    assert f"{tmp_path}/{FILE}: File too large" in message
    assert stored_rows(tmp_path) == 100
    Store(tmp_path).append(make_bars(0, 8000))
    assert stored_rows(tmp_path) == 8000


@pytest.fixture
def tiny_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(tiny_disk):
    store = Store(tiny_disk / "store")
    page, done, message = 2000, 0, ""
    while not message and done < 200_000:
        message = message_of(lambda first=done: store.append(make_bars(first, page)))
        done += 0 if message else page
    assert ".parquet: " in message
    assert "full" in message or "No space left" in message
    assert stored_rows(store.root) >= done > 0
    assert not list(tiny_disk.rglob("*.partial"))


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.9, -1, -9])
def test_a_truncated_file_is_named_and_the_next_run_goes_on(tmp_path, keep):
    store = Store(tmp_path)
    store.append(make_bars(0, 10_000))
    path = tmp_path / FILE
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    check_damaged(store, path)


@pytest.mark.parametrize("at", [0.001, 0.1, 0.5, 0.7, 0.999])
def test_a_changed_byte_is_named_and_the_next_run_goes_on(tmp_path, at):
    store = Store(tmp_path)
    store.append(make_bars(0, 10_000))
    path = tmp_path / FILE
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0x10
    path.write_bytes(data)
    check_damaged(store, path)


def check_damaged(store: Store, path: Path) -> None:
    """The damaged partition is named by whatever meets it; the other one is not affected; it can be filled again."""
    with pytest.raises(LongtapeError, match=rf"{path}: damaged .* `longtape data repair`"):
        store.read("BTCUSDT", "1h")
    assert len(store.read("BTCUSDT", "1h", since="2025-01-01")) == 10_000 - 8784
    [series] = store.series()
    report = quality.check_stored(store, series)
    assert not report.ok
    assert str(path) in report.findings[0].meaning
    with pytest.raises(LongtapeError, match=rf"{path}: damaged .* set aside as 2024.parquet.damaged"):
        store.append(make_bars(0, 500))
    assert store.append(make_bars(0, 10_000)) == Appended(added=8784, duplicates=10_000 - 8784)
    assert stored_rows(store.root) == 10_000


@pytest.mark.parametrize(("torn", "last"), [("2024", 9_999), ("2025", 8_783)])
def test_a_fetch_that_resumes_over_a_torn_file_is_stopped_once(tmp_path, torn, last):
    store = Store(tmp_path)
    store.append(make_bars(0, 10_000))
    path = tmp_path / f"bybit/linear/BTCUSDT/1h/{torn}.parquet"
    path.write_bytes(path.read_bytes()[:500])
    assert store.entries()[0].damaged == (str(path),)
    with pytest.raises(LongtapeError, match=f"{path}: damaged"):
        store.last(BTC, HOUR)
    assert store.last(BTC, HOUR) == START + last * HOUR.milliseconds


def test_damaged_files_are_set_aside_with_their_periods(tmp_path):
    store = Store(tmp_path)
    store.append(make_bars(0, 10_000))
    (tmp_path / FILE).write_bytes(b"PAR1")
    [series] = store.series()
    year = (START, START + 8784 * HOUR.milliseconds)
    assert store.set_aside_damaged(series) == [year]
    assert store.set_aside_damaged(series) == []
    assert len(store.read("BTCUSDT", "1h")) == 10_000 - 8784
    assert (tmp_path / f"{FILE}.damaged").exists()
