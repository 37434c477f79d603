"""Out of memory and dead processes end with their own codes and remedies, a data set that has changed with its records."""

import pytest
import torch

from mmexpert.engine.data_records import NAME, difference, digests, keep_records
from mmexpert.engine.failures import translated
from mmexpert.engine.runtime import check_shared
from mmexpert.types import DataError, MemoryExhaustedError, ProcessError, RunFolderError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_is_told_with_what_is_free_and_its_remedies(raised):
    words = r"GiB are free.*trainer.accumulation.*trainer.grad_checkpointing=true.*similarity=global.*batch_size"
    with pytest.raises(MemoryExhaustedError, match=words) as told, translated(CPU, 1, False):
        raise raised
    assert told.value.exit_code == 7


def test_checkpointing_that_is_on_is_no_remedy_against_too_little_memory():
    with pytest.raises(MemoryExhaustedError) as told, translated(CPU, 1, True):
        raise MemoryError
    assert "checkpointing" not in str(told.value)


@pytest.mark.parametrize(
    "text", ["[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3021", "Timed out waiting 1800000ms for recv"]
)
def test_a_dead_peer_is_code_8_and_only_where_there_are_peers(text):
    with pytest.raises(ProcessError, match="another process has ended or hangs") as told, translated(CPU, 2, True):
        raise RuntimeError(text)
    assert told.value.exit_code == 8
    with pytest.raises(RuntimeError, match="Connection|Timed"), translated(CPU, 1, True):
        raise RuntimeError(text)


def test_a_defect_and_a_projects_error_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shape mismatch"), translated(CPU, 2, True):
        raise RuntimeError("shape mismatch")
    with pytest.raises(DataError, match="out of memory"), translated(CPU, 2, True):
        raise DataError("a file named out of memory")


class Ranks:
    rank, processes = 0, 2

    def __init__(self, sees):
        self.sees = sees

    def gather_objects(self, thing):
        return [thing, self.sees] if isinstance(thing, bool) else [thing, thing]


def test_a_rank_that_does_not_see_the_folder_of_rank_0_ends_all_with_code_8(tmp_path):
    check_shared(tmp_path / "run", Ranks(True))
    with pytest.raises(ProcessError, match=r"rank 1 does not see .*outputs/ is not shared"):
        check_shared(tmp_path / "run", Ranks(False))
    assert list((tmp_path / "run").iterdir()) == []


LINES = [f"img{i}\ttrain\t{i % 2}\tgroup{i}\ta caption\t\t100" for i in range(30)]


def begun(folder, has_trained=True):
    keep_records(folder, "before", LINES)
    if has_trained:
        (folder / "checkpoints" / "step_00000001").mkdir(parents=True)
    return folder


def test_a_resume_on_other_data_names_the_first_ten_changed_new_and_missing_records(tmp_path):
    now = [line.replace("\t100", "\t101") if i < 12 else line for i, line in enumerate(LINES[:-1])] + ["more\ttrain"]
    with pytest.raises(RunFolderError) as told:
        keep_records(begun(tmp_path), "after", now)
    text = str(told.value)
    assert "12 changed ('img0', 'img1', " in text and "'img9', ...)" in text and "'img10'" not in text
    assert "1 new ('more'); 1 missing ('img29')" in text and "resume=never" in text


def test_where_nothing_has_been_trained_the_mended_data_is_taken(tmp_path):
    keep_records(begun(tmp_path, has_trained=False), "after", LINES[:5])
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    keep_records(tmp_path, "after", LINES[:5])
    with pytest.raises(RunFolderError, match="25 new"):
        keep_records(tmp_path, "before", LINES)


def test_a_damaged_list_of_records_refuses_no_resume(tmp_path):
    (begun(tmp_path) / NAME).write_bytes(b"cut")
    keep_records(tmp_path, "after", LINES[:5])


def test_records_are_told_by_repr_and_lines_of_one_name_stay_apart():
    assert list(digests(["a\x1b[2J\tx", "prompt", "prompt"])) == ["'a\\x1b[2J'", "'prompt'", "'prompt''"]
    assert difference(digests(["a"]), digests(["a"])) == "its order or parameters"
