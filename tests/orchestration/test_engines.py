"""Jobs are done once, go on where they were interrupted, and give the same on every engine."""

import pytest

import longtape
from longtape.core.errors import LongtapeError, UserError
from longtape.orchestration.engines import InProcess, ProcessPool, RayCluster, build_engine
from longtape.orchestration.jobs import Job, execute

WORK = "tests.orchestration.work"


def job(function, name="one", **arguments):
    return Job(name, f"{WORK}:{function}", arguments)


@pytest.fixture(params=["process", "pool", "ray"])
def engine(request):
    if request.param == "ray":
        pytest.importorskip("ray", reason="needs longtape[ray]")
    return build_engine(request.param, None if request.param == "process" else 2, 1, None)


def test_every_engine_gives_the_same(tmp_path, engine):
    jobs = [job("draw", f"draw-{seed}", seed=seed) for seed in range(3)]
    expected = [one.result for one in execute(jobs, tmp_path / "here", InProcess(1))]
    assert [one.result for one in execute(jobs, tmp_path / "there", engine)] == expected


def test_what_is_done_is_not_done_again(tmp_path):
    jobs = [job("add", f"add-{b}", a=1, b=b) for b in (1, 2)]
    first = execute(jobs, tmp_path, InProcess(1))
    again = execute([*jobs, job("add", "add-3", a=1, b=3)], tmp_path, InProcess(1))
    assert [one.result["sum"] for one in again] == [2, 3, 4]
    assert again[:2] == first
    assert (tmp_path / "add-1" / "attempts").read_text() == "x"


@pytest.mark.parametrize("change", ["arguments", "data", "version"])
def test_a_folder_of_another_job_is_refused(tmp_path, monkeypatch, change):
    execute([job("add", a=1, b=1)], tmp_path, InProcess(1))
    other = job("add", a=1, b=2 if change == "arguments" else 1)
    if change == "data":
        other = Job(other.name, other.function, other.arguments, {"BTC": "other"})
    if change == "version":
        monkeypatch.setattr(longtape, "__version__", "9")
    with pytest.raises(UserError, match="name another folder"):
        execute([other], tmp_path, InProcess(1))


def test_a_worker_that_dies_is_replaced_and_its_job_goes_on(tmp_path, capsys):
    jobs = [job("dies_at_first", "a"), job("add", "b", a=1, b=1)]
    found = execute(jobs, tmp_path, ProcessPool(2, 1))
    assert found[0].result == 1  # the second attempt found what the first had written
    assert "killed by signal 9; another one goes on" in capsys.readouterr().err


def test_a_worker_that_dies_again_and_again_is_an_error(tmp_path):
    with pytest.raises(LongtapeError, match="killed by signal 9"):
        execute([job("dies_at_first", times=9)], tmp_path, ProcessPool(1, 1))


def test_a_ray_worker_that_dies_is_replaced(tmp_path):
    pytest.importorskip("ray", reason="needs longtape[ray]")
    assert execute([job("dies_at_first")], tmp_path, RayCluster(1, workers=2))[0].result == 1


def test_a_mistake_is_one_line_and_tried_again(tmp_path, engine):
    with pytest.raises(UserError, match="one: the lookback is too long"):
        execute([job("mistaken")], tmp_path, engine)
    kept = execute([job("mistaken")], tmp_path, engine, keep_errors=True)
    assert kept[0].error == "the lookback is too long"


def test_a_fault_in_a_worker_names_its_log(tmp_path):
    with pytest.raises(LongtapeError, match=r"ZeroDivisionError: a fault.*log\.txt"):
        execute([job("broken")], tmp_path, ProcessPool(1, 1))


def test_a_worker_has_the_threads_that_it_is_given(tmp_path):
    assert execute([job("add", a=1, b=1)], tmp_path, ProcessPool(1, 1))[0].result["threads"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("process", 2, None, None), "--workers"),
        (("pool", None, None, "auto"), "--address"),
        (("dask", None, None, None), "process, pool, ray"),
    ],
)
def test_options_that_an_engine_does_not_have_are_refused(words, said):
    with pytest.raises(UserError, match=said):
        build_engine(*words)
