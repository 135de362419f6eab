"""Which pooling operator is chosen, and how the C++ kernel is built and kept."""

import logging
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from pooling_reference import errors, pool_by, tokens

from revvideo.models import compiled_pooling, depthwise_pooling
from revvideo.models.depthwise_pooling import depthwise_pool


@pytest.fixture(scope="module")
def compiler():
    """Skips where none works."""
    try:
        compiled_pooling.library()
    except compiled_pooling.BuildError as error:
        pytest.skip(f"the C++ kernel cannot be built here: {error}")


@pytest.fixture
def quick_build(monkeypatch, compiler):
    monkeypatch.setattr(compiled_pooling, "_flags", lambda: [(["-std=c++17", "-O0", "-fPIC"], [])])


@pytest.fixture
def no_compiler(monkeypatch):
    """A machine without a compiler, with nothing remembered of this one."""

    def fail():
        raise compiled_pooling.BuildError("there is no C++ compiler (g++)")

    monkeypatch.setattr(compiled_pooling, "library", fail)
    depthwise_pooling._compiled_works.cache_clear()
    yield
    depthwise_pooling._compiled_works.cache_clear()


def test_auto_goes_on_without_a_compiler_and_says_so_once(no_compiler, caplog):
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            found = errors(
                pool_by("auto"), tokens(8, (2, 6, 6), torch.float32), torch.randn(4, 1, 3, 3, 3), (1, 2, 2), (1, 1, 1)
            )
            assert max(found) <= 1e-6
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "plain torch" in caplog.text
    assert "there is no C++ compiler" in caplog.text


def test_auto_is_compiled_where_there_is_a_compiler(compiler, caplog):
    depthwise_pooling._compiled_works.cache_clear()
    volume = tokens(8, (2, 6, 6), torch.float32)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert depthwise_pooling._implementation("auto", volume) is compiled_pooling
    assert [r.getMessage() for r in caplog.records] == ["Pooling: the C++ kernel"]


def test_compiled_without_a_compiler_is_an_error(no_compiler):
    with pytest.raises(ValueError, match=r"'compiled' cannot be built: there is no C\+\+ compiler .* use 'auto'"):
        depthwise_pool(
            torch.randn(1, 4, 2, 4, 4), torch.randn(4, 1, 3, 3, 3), (1, 1, 1), (1, 1, 1), operator="compiled"
        )


def test_without_a_compiler_nothing_is_built(tmp_path):
    with pytest.raises(compiled_pooling.BuildError, match=r"no C\+\+ compiler \(no-such-c\+\+\)"):
        compiled_pooling.load_library(tmp_path, compilers=("no-such-c++",))


def test_an_error_of_the_compiler_is_told_in_one_line(tmp_path, monkeypatch, quick_build):
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main( {")
    monkeypatch.setattr(compiled_pooling, "SOURCE", broken)
    with pytest.raises(compiled_pooling.BuildError, match=r"failed with exit code 1: .*broken\.cpp:1") as stop:
        compiled_pooling.load_library(tmp_path / "cache")
    assert "\n" not in str(stop.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path, compiler):
    (tmp_path / "file").write_text("")
    with pytest.raises(compiled_pooling.BuildError, match="file"):
        compiled_pooling.load_library(tmp_path / "file" / "cache")


def test_a_kept_kernel_is_used_again_and_a_broken_one_is_replaced(tmp_path, monkeypatch, quick_build):
    compiled_pooling.load_library(tmp_path)
    (kept,) = tmp_path.iterdir()
    content, built = kept.read_bytes(), kept.stat().st_mtime_ns
    other = tmp_path / kept.name.replace("depthwise_pooling-", "depthwise_pooling-0")  # of another machine
    other.write_bytes(b"not for here")
    compiled_pooling.load_library(tmp_path)
    assert kept.stat().st_mtime_ns == built
    # Not in place: the loaded library is that file.
    kept.unlink()
    kept.write_bytes(content[: len(content) // 2])
    assert compiled_pooling.load_library(tmp_path).pool_float32
    (again,) = set(tmp_path.iterdir()) - {other}
    assert len(again.read_bytes()) > len(content) // 2
    monkeypatch.setattr(compiled_pooling, "_build", lambda *a: pytest.fail("built again"))
    compiled_pooling.load_library(tmp_path)


def test_the_threads_are_torch_s_own(compiler):
    """No second OpenMP: its idle threads would take the cores from the first one's."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("loaded libraries are not listed on this system")
    names = {Path(line.split()[-1]).name for line in maps.read_text().splitlines()}
    assert sum("omp" in name and ".so" in name for name in names) <= 1, names


def test_two_threads_build_at_once(tmp_path, quick_build):
    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(compiled_pooling.load_library, [tmp_path] * 2))
    assert all(library.pool_float32 for library in libraries)
    assert {path.suffix for path in tmp_path.iterdir()} == {".so"}


def load(folder, barrier, results):
    barrier.wait()
    results.put(bool(compiled_pooling.load_library(folder).pool_float32))


@pytest.mark.slow
def test_two_processes_build_at_once(tmp_path, compiler):
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    processes = [spawn.Process(target=load, args=(tmp_path, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=100) for _ in processes] == [True, True]
    for process in processes:
        process.join()
    assert {path.suffix for path in tmp_path.iterdir()} == {".so"}
