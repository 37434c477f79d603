import math

import pytest
import torch

from mmexpert.engine.progress import Choice, Progress, check_monitors, epoch_name, mode_of
from mmexpert.types import ConfigError


def progress(mode=None, top_k=3, early=None, patience=None, min_delta=0.0):
    return Progress(Choice(mode, top_k, early, patience, min_delta))


def validated(values, key="valid/acc", **settings):
    run = progress(**settings)
    for value in values:
        run.close_epoch({key: value}, [key])
    return run


def test_modes_go_by_the_keys_name():
    for key in "valid/loss_total", "valid/loss_radar_to_text", "valid/nll", "brier", "valid/ece_15", "valid/radar_to_text_mean_rank":
        assert mode_of(key) == "min", key
    for key in "valid/RSum", "valid/acc", "valid/map", "valid/radar_to_text_R@1", "loss_study/acc", "valid/radar_effective_rank":
        assert mode_of(key) == "max", key


def test_the_best_list_is_sorted_cut_to_top_k_and_names_folders_by_the_first_monitor():
    run = progress(top_k=2)
    for acc, loss in [(0.5, 3.0), (0.25, 1.0), (0.75, 2.0)]:
        run.close_epoch({"valid/acc": acc, "valid/loss_total": loss}, ["valid/acc", "valid/loss_total"])
    assert [(e["epoch"], e["value"], e["folder"]) for e in run.best["valid/acc"]] == [
        (3, 0.75, "epoch_03_val_0.7500"),
        (1, 0.5, "epoch_01_val_0.5000"),
    ]
    assert [(e["epoch"], e["value"], e["folder"]) for e in run.best["valid/loss_total"]] == [
        (2, 1.0, "epoch_02_val_0.2500"),
        (3, 2.0, "epoch_03_val_0.7500"),
    ]
    assert (run.best_epoch, run.best_value) == (3, 0.75)


def test_of_equal_values_the_earlier_epoch_is_the_better_one():
    assert [entry["epoch"] for entry in validated([0.5, 0.5, 0.5], top_k=2).best["valid/acc"]] == [1, 2]
    assert [entry["epoch"] for entry in validated([0.0, 0.0], top_k=1).best["valid/acc"]] == [1]  # a metric of 0 is kept too


def test_minus_one_keeps_every_epoch():
    assert [entry["epoch"] for entry in validated([0.1, 0.3, 0.2], top_k=-1).best["valid/acc"]] == [2, 3, 1]


def test_trainer_mode_overrules_the_name():
    assert validated([0.1, 0.3], mode="min").best_epoch == 1


def test_a_value_that_is_not_finite_is_no_improvement_and_is_reported(caplog):
    run = validated([math.nan, 0.5, math.inf], patience=2)
    assert [entry["epoch"] for entry in run.best["valid/acc"]] == [2]
    assert "epoch 1: valid/acc is nan" in caplog.text and "epoch 3: valid/acc is inf" in caplog.text
    assert run.early_stopping == {"best": 0.5, "bad_epochs": 1}


def test_an_unknown_monitor_is_refused_with_the_keys_that_there_are():
    with pytest.raises(ConfigError, match=r"'valid/rsum'.*did you mean valid/RSum.*valid/RSum, valid/acc"):
        check_monitors(["valid/rsum"], ["valid/acc", "valid/RSum"])
    check_monitors(["valid/acc", None], ["valid/acc"])
    with pytest.raises(ConfigError, match="valid/acc"):
        progress().close_epoch({"valid/acc": 0.5}, ["valid/mpa"])


def test_early_stopping_counts_validations_without_a_gain_above_min_delta():
    left = []
    run = progress(patience=2, min_delta=0.125)
    for value in [0.5, 0.5625, 0.75, 0.8125, 0.875]:  # the last two are better, but by no more than 0.125
        run.close_epoch({"valid/acc": value}, ["valid/acc"])
        left.append(run.patience_left)
    assert left == [True, True, True, True, False]
    assert run.early_stopping == {"best": 0.75, "bad_epochs": 2}
    assert run.best_value == 0.875  # the best checkpoint needs any improvement


def test_epochs_without_validation_count_for_nothing():
    run = progress(patience=1)
    run.close_epoch({"valid/acc": 0.5}, ["valid/acc"])
    run.close_epoch({"train/loss_total": 1.0}, ())
    assert run.patience_left and run.epoch == 2 and len(run.history) == 2


@pytest.mark.parametrize("patience", [None, 0])
def test_no_patience_means_that_nothing_stops_early(patience):
    assert validated([0.5] * 20, patience=patience).patience_left


def test_early_stopping_may_watch_another_key_by_that_keys_mode():
    run = progress(mode="max", early="valid/loss_total", patience=1)
    for acc, loss in [(0.5, 3.0), (0.4, 2.0)]:
        run.close_epoch({"valid/acc": acc, "valid/loss_total": loss}, ["valid/acc"])
    assert run.early_stopping == {"best": 2.0, "bad_epochs": 0}


def test_means_over_the_epoch_weigh_batches_by_their_rows_and_add_up_ranks():
    run = progress()
    run.add({"loss_total": torch.tensor(1.0), "acc": torch.tensor(0.0)}, 3)
    run.add({"loss_total": torch.tensor(5.0), "acc": torch.tensor(1.0)}, 1)
    assert run.epoch_means(lambda sums: sums) == {"loss_total": 2.0, "acc": 0.25}
    other = torch.tensor([[12.0, 4.0], [4.0, 4.0]], dtype=torch.float64)  # another rank: 4 rows of loss 3 and accuracy 1
    assert run.epoch_means(lambda sums: sums.add_(other)) == {"loss_total": 2.5, "acc": 0.625}
    assert run.epoch_means(lambda sums: sums)["loss_total"] == 2.0  # a reduction in place leaves the sums alone


def test_a_term_that_is_not_finite_leaves_only_its_own_batch_out_of_the_mean():
    run = progress()
    run.add({"loss_total": torch.tensor(math.nan)}, 4)
    assert math.isnan(run.epoch_means(lambda sums: sums)["loss_total"])
    run.add({"loss_total": torch.tensor(2.0)}, 2)
    assert run.epoch_means(lambda sums: sums) == {"loss_total": 2.0}


def test_terms_that_come_and_go_each_have_their_own_mean():
    run = progress()
    run.add({"loss_total": torch.tensor(1.0)}, 1)
    run.add({"loss_total": torch.tensor(3.0), "loss_seq": torch.tensor(7.0)}, 1)
    assert run.epoch_means(lambda sums: sums) == {"loss_total": 2.0, "loss_seq": 7.0}


def test_sums_are_float64_and_hold_no_graph():
    run = progress()
    run.add({"loss_total": torch.tensor(1.0, requires_grad=True) * 2}, 1)
    (sums,) = run.sums.values()
    assert sums.dtype == torch.float64 and not sums.requires_grad


def test_a_window_goes_on_after_a_resume_and_begins_again_when_it_is_read():
    run, other, none = progress(), progress(), torch.zeros(0)
    run.add({"loss_total": torch.tensor(1.0)}, 2)
    assert run.window_means(lambda sums: sums, none) == ({"loss_total": 1.0}, {"loss_total": 1.0}, [])
    run.add({"loss_total": torch.tensor(4.0)}, 2)
    other.load_rank([run.rank_state()])
    other.add({"loss_total": torch.tensor(7.0)}, 2)
    window, epoch, further = other.window_means(lambda sums: sums, torch.tensor([0.5]))
    assert (window, epoch, further) == ({"loss_total": 5.5}, {"loss_total": 4.0}, [0.5])


def test_closing_an_epoch_moves_the_position_and_empties_the_sums():
    run = progress()
    run.add({"loss_total": torch.tensor(1.0)}, 2)
    run.advance(2)
    run.advance(2)
    run.pending = "evaluate"
    assert (run.step, run.step_in_epoch, run.samples) == (2, 2, 4)
    run.close_epoch({"train/loss_total": 1.0}, ())
    assert (run.epoch, run.step, run.step_in_epoch, run.pending, run.sums) == (1, 2, 0, "train", {})
    assert run.history == [{"epoch": 1, "step": 2, "train/loss_total": 1.0}]


def test_a_state_is_plain_python_and_comes_back_whole():
    run = validated([0.5, 0.75], patience=3)
    run.add({"loss_total": torch.tensor(1.0)}, 2)
    other = progress(patience=3)
    other.load(run.state())
    other.load_rank([run.rank_state()])
    assert other == run
    run.close_epoch({"valid/acc": 1.0}, ["valid/acc"])
    assert len(other.history) == 2 and other.best_value == 0.75  # and shares nothing with the original


def test_a_state_taken_up_with_a_smaller_top_k_is_cut():
    other = progress(top_k=1)
    other.load(validated([0.5, 0.75]).state())
    assert [entry["epoch"] for entry in other.best["valid/acc"]] == [2]


def test_settings_out_of_range_are_refused_by_their_keys():
    wrong = {"trainer.mode": {"mode": "up"}, "save_top_k": {"top_k": 0}, "patience": {"patience": -1}, "min_delta": {"min_delta": -0.1}}
    for key, settings in wrong.items():
        with pytest.raises(ConfigError, match=key):
            progress(**settings)


def test_an_epochs_folder_is_named_for_people():
    assert epoch_name(12, 1.23446) == "epoch_12_val_1.2345"
    assert epoch_name(7, -0.5) == "epoch_07_val_-0.5000"
