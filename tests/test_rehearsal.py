"""What a configuration can not be built from is told before any data are read or simulated."""

import pytest
from omegaconf import OmegaConf

from mmexpert import build, training
from mmexpert.command_line import composed, groups
from mmexpert.config import check
from mmexpert.data import radar_sim
from mmexpert.rehearsal import rehearse
from mmexpert.types import ConfigError, RunFolderError

WRONG = {
    "encoder.radar.trunk._target_=foo.Bar": "encoder.radar.trunk._target_='foo.Bar' is refused",
    "+encoder.radar.trunk.layer=2": "encoder.radar.trunk.layer: .* did you mean 'layers'",
    "encoder.radar.lr_scale=-1": "encoder.radar.lr_scale=-1: a share of optimizer.lr, 0 or more",
    "encoder.text.lr_scale=-1": "encoder.text.lr_scale=-1: a share of optimizer.lr, 0 or more",
    "encoder.radar.lr_scale=foo": "encoder.radar.lr_scale='foo': a number is needed",
    "encoder.radar.fusion.view_dropout=3": "encoder.radar.fusion.view_dropout=3: a probability, 0..1",
    "encoder.radar.width=foo": "encoder.radar.width='foo': a whole number is needed",
    "encoder.radar.width=1.5": "encoder.radar.width=1.5: a whole number is needed",
    "encoder.radar.trunk.heads=7": "heads=7 does not divide the width",
    "encoder.radar.trunk.heads=0": "heads=0 does not divide the width",
    "encoder.radar.trunk.heads=-1": "heads=-1 does not divide the width",
    "encoder.radar.trunk.layers=-1": "encoder.radar.trunk: layers=-1 is 0 or more",
    "encoder.radar.trunk.dropout=-1": "encoder.radar.trunk: .*dropout=-1 0 to below 1",
    "encoder.radar.trunk.context_length=0": "encoder.radar.trunk: .*context_length=0 1 or more",
    "encoder.radar.fusion.views=0": "encoder.radar.fusion.views=0: places",
    "encoder.radar.width=0": "encoder.radar.width=0: channels, 1 or more",
    "encoder.text.bert.width=foo": "encoder.text.bert.width=foo: a whole number, 1 or more",
    "encoder.text.bert.layers=-1": "encoder.text.bert.layers=-1: a whole number, 1 or more",
    "encoder.text.bert.heads=3": "encoder.text.bert.heads=3 does not divide the width 128",
    "encoder.text.bert.dropout=foo": "encoder.text.bert.dropout=foo: a share",
    "encoder.text.bert.init_std=0": "encoder.text.bert.init_std=0: a standard deviation, above 0",
    "encoder.text.max_length=0": "encoder.text.max_length=0: 3 or more",
    "model.projection_dim=0": "model.projection_dim=0: 1 or more",
    "cv.max_folds=0": "cv.max_folds=0: 1 or more",
    "encoder.text.freeze_backbone=maybe": "encoder.text.freeze_backbone='maybe': true or false is needed",
    "loss.temperature=5": "loss.temperature=5: 0.01..1",
    "loss.learn_scale=1": "loss.learn_scale=1: true or false is needed",
    "evaluator.k=[0]": "evaluator.k=.0.: one or more limits of at least 1",
    "optimizer.lr=-1": "optimizer: Invalid learning rate: -1",
    "optimizer.betas=[0.9,foo]": "optimizer: ",
    "scheduler.warmup=2": "scheduler.warmup=2: a share, 0..1",
    "cv.inner_val=2": "cv.inner_val=2 is a share",
    "trainer.save_top_k=0": "trainer.save_top_k=0: 1 or more",
    "trainer.mode=most": "trainer.mode=most: choose min, max or null",
    "trainer.batch_size=65": "trainer.batch_size=65 .* must be a multiple",
}


@pytest.mark.parametrize("override", WRONG)
def test_what_can_not_be_built_is_told_without_data(override):
    with pytest.raises(ConfigError, match=f"^{WRONG[override]}"):
        rehearse(check(composed(override)), (), 2)


VIT = {
    "depth=-1": "depth=-1: a whole number, 1 or more",
    "width=foo": "width=foo: a whole number",
    "heads=0": "heads=0: a whole",
    "dropout=1": "dropout=1: a share, 0 or above, below 1",
}


@pytest.mark.parametrize("override", VIT)
def test_sizes_of_a_vision_transformer_are_numbers(override):
    with pytest.raises(ConfigError, match=f"^encoder.radar.tower.{VIT[override]}"):
        rehearse(check(composed("encoder/radar=vit", f"encoder.radar.tower.{override}")), (), 1)


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["similarity=combined", "similarity.weights.local=foo"], "similarity.weights=.*: one number of 0 or above"),
        (["similarity=combined", "similarity.weights.local=-1"], "similarity.weights=.*: one number of 0 or above"),
        (["similarity=combined", "similarity.temporal.gamma=0"], "similarity.gamma=0: above 0"),
        (["loss=composite", "loss.terms.token.weight=-1"], "loss.terms.token.weight=-1: 0 or more"),
        (["loss=composite", "loss.terms.token.weight=foo"], "loss.terms.token.weight=foo: 0 or more"),
        (["experiment=hip", "model/head=linear", "model.head.prior_tau=-1"], "model.head.prior_tau=-1: 0 or more"),
        (["experiment=hip", "evaluator.seed=-1"], "evaluator.seed=-1: 0 or more"),
        (["optimizer.eps=0"], "optimizer.eps=0: above 0"),
        (["model.projection_dim=-1"], "model.projection_dim=-1: 1 or more"),
        (["experiment=image_text", "encoder/image=clip", "encoder.image.side=0"], "encoder.image.side=0: pixels, 1 or more"),
        (["experiment=image_text", "encoder/image=clip", "encoder.image.lr_scale=-1"], "encoder.image.lr_scale=-1: a share"),
        (["experiment=image_text", "encoder/text=minilm", "encoder.text.max_length=2"], "encoder.text.max_length=2: 3 or more"),
        (["experiment=cir_combiner", "combiner.hidden_dim=0"], "combiner.hidden_dim=0: 1 or more, or null"),
        (["experiment=cir_combiner", "combiner=sum"], "combiner.dropout: mmexpert.models.combiner.SumCombiner takes no such key"),
    ],
)
def test_parts_of_other_tasks_and_towers_that_wait_for_their_weights_are_asked_for_what_can_be_said(overrides, told):
    with pytest.raises(ConfigError, match=f"^{told}"):
        rehearse(check(composed(*overrides)), (), 1)


@pytest.mark.parametrize("preset", groups()["experiment"])
def test_every_preset_passes(preset):
    more = ["dataset.root=somewhere"] if OmegaConf.is_missing(composed(f"experiment={preset}").dataset, "root") else []
    rehearse(check(composed(f"experiment={preset}", *more)), (), 1)


@pytest.mark.parametrize(
    "head, loss, similarity",
    [
        ("linear", "superclip", "global"),
        ("both", "superclip_token", "local"),
        ("text", "composite", "attention"),
        ("none", "siglip", "temporal"),
        ("none", "clip_one_way", "combined"),
    ],
)
def test_what_fits_together_passes(head, loss, similarity):
    rehearse(check(composed(f"model/head={head}", f"loss={loss}", f"similarity={similarity}", "encoder/radar=vit")), (), 1)


@pytest.mark.parametrize("key", ["init_from", "model.towers"])
def test_a_run_to_begin_with_that_is_not_there_is_told_without_data(key, tmp_path):
    with pytest.raises(RunFolderError, match=f"{key}={tmp_path}/none: no model"):
        rehearse(check(composed("experiment=cir_combiner", f"{key}={tmp_path}/none")), (), 1)


def test_a_run_is_rehearsed_before_its_data_are_built(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "build_dataset", lambda *given: pytest.fail("the data were built"))
    with pytest.raises(ConfigError, match="encoder.radar.trunk._target_='foo.Bar' is refused"):
        training.train_run(check(composed(*tiny, "encoder.radar.trunk._target_=foo.Bar")), tmp_path / "run", [], ())


@pytest.mark.parametrize(
    "preset, override, told",
    [
        ("hip", "dataset.balance.smooth=foo", "dataset.balance.smooth='foo': a number is needed"),
        ("hip", "dataset.seed=-1", "dataset.seed=-1: a whole number, 0 or more"),
        ("humanml3d", "dataset.split.test=-1", "dataset.split: valid=0.05 and test=-1 are shares"),
        ("humanml3d", "dataset.split.valid=foo", "dataset.split: valid=foo and test=0.15 are shares"),
        ("radhar", "dataset.window=0", "dataset.window=0 and dataset.stride=10 are frames, at least 1"),
        ("radhar", "dataset.augmentation.time_shift=-1", "dataset.augmentation.time_shift=-1: 0 or 1"),
    ],
)
def test_numbers_of_other_sets_are_told_before_a_file_is_read(preset, override, told):
    root = [] if preset == "hip" else ["dataset.root=/nowhere"]
    with pytest.raises(ConfigError, match=f"^{told}"):
        build.build_dataset(check(composed(f"experiment={preset}", *root, override)))


@pytest.mark.parametrize(
    "override, told",
    [
        ("dataset.unit_length=5", "dataset.max_length=496 must be a multiple of dataset.unit_length=5"),
        ("dataset.views=[dopler]", "dataset.views="),
        ("dataset.normalize.floor_db=60", "dataset.normalize.floor_db=60: dB below the reference, a number below 0"),
        ("dataset.normalize.floor_db=0", "dataset.normalize.floor_db=0: dB below"),
        ("dataset.normalize.reference=-1", "dataset.normalize.reference=-1: clip .its maximum., or an amplitude above 0"),
        ("dataset.normalize.reference=foo", "dataset.normalize.reference=foo: clip"),
        ("dataset.normalize.kind=foo", "dataset.normalize.kind=foo: choose db, log1p, none"),
        ("dataset.augmentation={gain_db:foo}", "dataset.augmentation.gain_db='foo': a number is needed"),
        ("dataset.augmentation={time_mask:-1}", "dataset.augmentation.time_mask=-1: a share"),
        ("dataset.radar.scatterers=0", "dataset.radar.scatterers=0: a whole number, 1 or more"),
        ("dataset.radar.clutter=-1", "dataset.radar.clutter=-1: a whole number, 0 or more"),
        ("dataset.radar.noise=-1", "dataset.radar.noise=-1: a standard deviation, 0 or more"),
        ("dataset.radar.noise=foo", "dataset.radar.noise='foo': a number is needed"),
        ("dataset.seed=-1", "dataset.seed=-1: a whole number, 0 or more"),
        ("dataset.train=foo", "dataset.train='foo': a whole number is needed"),
        ("dataset.positives=foo", "dataset.positives=foo: choose instance, text, label, group"),
    ],
)
def test_what_is_wrong_with_clips_is_told_before_they_are_simulated(override, told, monkeypatch):
    monkeypatch.setattr(radar_sim, "cached_folder", lambda *given: pytest.fail("clips were simulated"))
    with pytest.raises(ConfigError, match=f"^{told}"):
        build.build_dataset(check(composed(override)))
