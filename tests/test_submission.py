"""CIRR submissions: the writer passes the checker, each kind of fault is found, val files reproduce the metrics."""

import copy
import json

import pytest
import torch
from composed_sets import write_cirr
from composed_vector import SHARED, gallery_features, text_features

from mmexpert.data.cirr import read_cirr
from mmexpert.metrics.composed import ComposedRanks, cirr_metrics, group_ranks, rank_targets
from mmexpert.submission import LIMIT, Submitted, faults_of, ranked_names, read_submission, recalls, write_submission
from mmexpert.types import ConfigError, DataError

needs_annotations = pytest.mark.skipif(not (SHARED / "cirr").is_dir(), reason=f"the real annotations are not in {SHARED}")


@pytest.fixture
def annotations(tmp_path):
    return read_cirr(str(write_cirr(tmp_path / "cirr_dataset")), "test1")


def features(annotations, dim=6):
    torch.manual_seed(0)
    row = annotations.position
    reference = torch.tensor([row[query.reference] for query in annotations.queries])
    members = torch.tensor([[row[name] for name in query.members] for query in annotations.queries])
    return torch.randn(len(reference), dim), torch.randn(len(annotations.names), dim), reference, members


@pytest.fixture
def contents(annotations):
    return ranked_names(*features(annotations), annotations)


def test_the_lists_are_sorted_by_score_without_the_reference(annotations, contents):
    query, gallery, reference, _ = features(annotations)
    for i, row in enumerate(annotations.queries):
        cosine = torch.cosine_similarity(query[i].double(), gallery.double(), dim=1).tolist()
        order = sorted(set(range(len(gallery))) - {int(reference[i])}, key=lambda j: (-cosine[j], j))
        names = [annotations.names[j] for j in order]
        assert contents[0][str(row.pairid)] == names[:50]
        assert contents[1][str(row.pairid)] == [name for name in names if name in row.members][:3]


def test_equal_scores_stand_in_gallery_order(annotations):
    query, gallery, reference, members = features(annotations)
    recall, _ = ranked_names(torch.ones_like(query), torch.ones_like(gallery), reference, members, annotations)
    for row in annotations.queries:
        assert recall[str(row.pairid)] == [name for name in annotations.names if name != row.reference][:50]


def test_the_writer_passes_the_checker(annotations, contents, tmp_path):
    paths = write_submission(tmp_path / "submission", "mine", contents, annotations)
    assert [path.name for path in paths] == ["recall_submission_mine.json", "recall_subset_submission_mine.json"]
    assert faults_of([read_submission(path) for path in paths], annotations) == []
    written = json.loads(paths[1].read_text())
    assert (written["version"], written["metric"]) == ("rc2", "recall_subset")
    assert set(written) == {"version", "metric", *(str(100 + i) for i in range(6))}


def recall_list(change):
    return 0, lambda content: change(content["102"])


FAULTS = {  # file, change, fault
    "version": (0, lambda c: c.update(version="rc1"), "version is 'rc1'"),
    "no version": (1, lambda c: c.pop("version"), "version is None"),
    "metric": (0, lambda c: c.update(metric="recal"), "metric is 'recal'"),
    "missing key": (0, lambda c: c.pop("103"), "pairid 103 of the captions file is missing"),
    "extra key": (1, lambda c: c.update({"999": c["100"]}), "the key '999' is no pairid"),
    "short list": (*recall_list(lambda names: names.pop()), "pairid 102: 49 names, expected 50"),
    "long group list": (1, lambda c: c["102"].append("test1-007"), "pairid 102: 4 names, expected 3"),
    "duplicate": (*recall_list(lambda names: names.__setitem__(49, names[0])), "is there more than once"),
    "reference": (*recall_list(lambda names: names.__setitem__(49, "test1-002")), "the reference 'test1-002' is in the list"),
    "unknown name": (*recall_list(lambda names: names.__setitem__(49, "dev-1")), "'dev-1' is not in the split file"),
    "no member": (1, lambda c: c["102"].__setitem__(2, "test1-050"), "'test1-050' is no member of the group"),
    "other order": (1, lambda c: c["102"].reverse(), "pairid 102: the order of"),
    "no list": (0, lambda c: c.update({"102": "test1-001"}), "pairid 102: test1-001 is no list of names"),
}


@pytest.mark.parametrize("number, change, message", FAULTS.values(), ids=FAULTS)
def test_each_kind_of_fault_is_found_and_nothing_is_written(annotations, contents, tmp_path, number, change, message):
    spoilt = copy.deepcopy(contents)
    change(spoilt[number])
    with pytest.raises(DataError) as caught:
        write_submission(tmp_path / "submission", "mine", spoilt, annotations)
    assert message in str(caught.value)
    assert not (tmp_path / "submission").exists()


def test_all_faults_are_listed_and_not_the_first_alone(annotations, contents):
    spoilt = copy.deepcopy(contents[0])
    spoilt["version"] = "rc1"
    spoilt.pop("100")
    spoilt["101"] = spoilt["101"][:7]
    spoilt["104"][3] = "dev-1"
    assert len(faults_of([Submitted(SHARED, spoilt, 10)], annotations)) == 4


def test_a_file_that_is_too_large_or_twice_the_same_metric_is_found(annotations, contents):
    (fault,) = faults_of([Submitted(SHARED, contents[0], LIMIT)], annotations)
    assert "the server takes less than 5000000" in fault
    faults = faults_of([Submitted(SHARED, contents[0], 10), Submitted(SHARED, contents[0], 10)], annotations)
    assert "expected one of each" in faults[0]


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.json").write_text('{"version": "rc2"')
    with pytest.raises(DataError, match="a.json: no JSON"):
        read_submission(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"1": [], "1": []}')
    with pytest.raises(DataError, match="the key '1' is there twice"):
        read_submission(tmp_path / "b.json")
    with pytest.raises(DataError, match="no such file"):
        read_submission(tmp_path / "c.json")


def test_the_command_checks_two_files_without_any_picture(annotations, contents, tmp_path, monkeypatch, caplog):
    from mmexpert import submit

    paths = write_submission(tmp_path / "out", "mine", contents, annotations)
    for picture in (tmp_path / "cirr_dataset/test1").iterdir():
        picture.unlink()
    arguments = [f"check={paths[0]},{paths[1]}", f"dataset.root={tmp_path / 'cirr_dataset'}", "dataset.split=test1"]
    monkeypatch.setattr("sys.argv", ["submit", *arguments])
    with caplog.at_level("INFO"):
        submit.application()
    assert "no fault, 6 queries" in caplog.text
    paths[0].write_text(paths[0].read_text().replace("rc2", "rc3"))
    with pytest.raises(DataError, match="1 fault, .*\n.*version is 'rc3'"):
        submit.application()


def test_split_is_short_for_dataset_split(annotations, contents, tmp_path, monkeypatch, caplog):
    from mmexpert import submit

    path = write_submission(tmp_path / "out", "mine", contents, annotations)[0]
    arguments = ["submit", f"check={path}", f"dataset.root={tmp_path / 'cirr_dataset'}", "split=test1"]
    monkeypatch.setattr("sys.argv", arguments)
    with caplog.at_level("INFO"):
        submit.application()
    assert "no fault, 6 queries" in caplog.text
    monkeypatch.setattr("sys.argv", [*arguments, "dataset.split=val"])
    with pytest.raises(ConfigError, match="split= and dataset.split= are one key"):
        submit.application()


@needs_annotations
def test_val_files_reproduce_what_the_metrics_say(tmp_path):
    annotations = read_cirr(str(SHARED / "cirr"), "val")
    row = annotations.position
    gallery = gallery_features(annotations.names)
    reference, target = (torch.tensor([row[getattr(q, role)] for q in annotations.queries]) for role in ("reference", "target"))
    members = torch.tensor([[row[name] for name in q.members] for q in annotations.queries])
    query = gallery[reference] + text_features(annotations.queries)
    contents = ranked_names(query, gallery, reference, members, annotations)
    write_submission(tmp_path, "val", contents, annotations)
    groups = group_ranks(query, gallery, target, reference, members)
    metrics = cirr_metrics(ComposedRanks(rank_targets(query, gallery, target, reference), len(gallery), groups))
    found = recalls(contents, annotations)
    assert len(found) == 7
    assert found == pytest.approx({name: metrics[name] for name in found}, abs=1e-9)
    assert found["R@1"] == pytest.approx(100 * 900 / 4181)
