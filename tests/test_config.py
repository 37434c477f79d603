"""Only parts of this package, a short list and trusted packages can be named by a `_target_`; every YAML composes."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmexpert.command_line import composed, groups
from mmexpert.config import CONF_DIR, NOT_HASHED, check, instantiate, targets
from mmexpert.engine.status import config_hash
from mmexpert.key_hints import presets_without
from mmexpert.trust import trusted
from mmexpert.types import ConfigError

HOSTILE = [
    "os.system",
    "subprocess.run",
    "builtins.eval",
    "pickle.loads",
    "runpy.run_path",
    "timeit.timeit",
    "logging.os.system",
    "torch.load",
    "torch.hub.load",
    "pathlib.Path.write_text",
    "functools.partial",
    "hydra.utils.get_method",
    "mmexpert.config.instantiate",
    "mmexpert.losses.clip.torch.load",
]


@pytest.mark.parametrize("target", HOSTILE)
@pytest.mark.parametrize("place", ["top", "nested", "list", "args"])
def test_a_foreign_target_is_refused_wherever_it_stands(target, place):
    hostile = {"_target_": target}
    good = {"_target_": "mmexpert.losses.clip.ClipLoss", "temperature": 0.07}
    node = {"top": hostile, "nested": good | {"form": hostile}, "list": good | {"form": [hostile]}, "args": good | {"_args_": [hostile]}}[
        place
    ]
    with pytest.raises(ConfigError, match="is refused"):
        instantiate(node, "loss")


def test_a_part_of_another_group_is_refused():
    with pytest.raises(ConfigError, match="must name a class below mmexpert.encoders"):
        instantiate({"_target_": "mmexpert.losses.clip.ClipLoss"}, "encoder")


def test_a_misspelt_class_or_module_of_this_package_is_answered_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"mmexpert.losses.clip has no class ClipLos: did you mean 'ClipLoss'\? There are ClipLoss$"):
        instantiate({"_target_": "mmexpert.losses.clip.ClipLos"}, "loss")
    with pytest.raises(ConfigError, match=r"no module mmexpert.losses.clp: did you mean 'clip'\? There are base, clip, .*siglip") as told:
        instantiate({"_target_": "mmexpert.losses.clp.ClipLoss"}, "loss")
    assert "trust=" not in str(told.value)


def test_an_unknown_key_of_a_part_names_the_nearest():
    node = {"_target_": "mmexpert.losses.clip.ClipLoss", "temprature": 0.07}
    with pytest.raises(ConfigError, match="loss.temprature: .* did you mean 'temperature'"):
        instantiate(node, "loss")


def test_trust_is_read_from_the_arguments_and_never_covers_the_standard_library():
    assert trusted(["loss=clip", "trust=[mypkg,other]"]) == ("mypkg", "other")
    with pytest.raises(ConfigError, match="never trusted"):
        trusted(["trust=[os]"])


def test_a_trusted_package_may_name_its_own_loss(tmp_path, monkeypatch):
    (tmp_path / "theirpkg.py").write_text("class TheirLoss:\n    def __init__(self, weight):\n        self.weight = weight\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    node = {"_target_": "theirpkg.TheirLoss", "weight": 2.0}
    with pytest.raises(ConfigError, match=r"trust=\[theirpkg\]"):
        instantiate(node, "loss")
    assert instantiate(node, "loss", ["theirpkg"]).weight == 2.0


def test_a_trusted_package_that_lacks_a_library_is_told_by_that_librarys_name(tmp_path, monkeypatch):
    (tmp_path / "lackingpkg.py").write_text("import a_library_of_theirs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="lackingpkg is there, but it imports a_library_of_theirs, which is not installed"):
        instantiate({"_target_": "lackingpkg.TheirLoss"}, "loss", ["lackingpkg"])
    with pytest.raises(ConfigError, match="is refused"):
        instantiate({"_target_": "lackingpkg.nowhere.TheirLoss"}, "loss", ["nowherepkg"])


def choices() -> list[str]:
    skipped = {"experiment"}
    return [f"{group}={option}" for group, options in groups().items() for option in options if group not in skipped]


@pytest.mark.parametrize("choice", choices())
def test_every_option_of_every_group_composes_and_names_classes_that_exist(choice):
    from mmexpert.config import locate

    if plugin := {"sweep=joblib": "joblib_launcher", "sweep=slurm": "submitit_launcher", "sweep=optuna": "optuna_sweeper"}.get(choice):
        pytest.importorskip(f"hydra_plugins.hydra_{plugin}")
    rooted = ("dataset=radhar", "dataset=humanml3d", "dataset=radar_text", "dataset=image_text")
    cfg = composed(choice, *(["dataset.root=somewhere"] if choice in rooted else []))
    plain = OmegaConf.to_container(cfg, resolve=False)
    for path, node in targets(plain, "cfg"):
        assert isinstance(locate(node["_target_"]), type), path


@pytest.mark.parametrize("preset", groups()["experiment"])
def test_every_preset_composes_under_its_own_name_and_passes_the_schema(preset):
    cfg = composed(f"experiment={preset}")
    if OmegaConf.is_missing(cfg.dataset, "root") or ("root" in cfg.dataset and cfg.dataset.root is None):
        cfg = composed(f"experiment={preset}", "dataset.root=somewhere")
    assert check(cfg)["name"] == preset


def test_a_data_set_without_radar_is_answered_with_the_presets_that_read_none():
    named = "experiment=cir_combiner or cir_finetune or hip or hip_superclip or image_text$"
    with pytest.raises(ConfigError, match=f"dataset=image_folder has no radar, which .*: choose a preset without one, {named}"):
        check(composed("dataset=image_folder", "dataset.root=somewhere"))
    with pytest.raises(ConfigError, match="dataset=theirs.Pictures has no radar.*image_text"):
        check(composed("dataset=scenes", "dataset._target_=theirs.Pictures"))


@pytest.mark.parametrize("option, preset", [("image_folder", "hip"), ("image_text", "image_text"), ("cirr", "cir_finetune")])
def test_a_named_preset_takes_such_a_data_set(option, preset):
    assert preset in presets_without("encoder/radar")
    assert check(composed(f"experiment={preset}", f"dataset={option}", "dataset.root=somewhere"))["encoder"].get("radar") is None


@pytest.mark.parametrize("key", ["optimizer.lr", "optimizer.weight_decay", "scheduler.warmup", "loss.temperature"])
def test_a_word_in_place_of_a_number_is_told_before_any_data_is_made(key):
    with pytest.raises(ConfigError, match=f"{key}='abc': a number is needed"):
        check(composed(f"{key}=abc"))


@pytest.mark.parametrize(
    "override, told",
    [
        ("trainer.max_grad_norm=-1", "trainer.max_grad_norm=-1: above 0, or null"),
        ("trainer.max_grad_norm=0", "trainer.max_grad_norm=0: above 0, or null"),
        ("trainer.max_grad_norm=nan", "trainer.max_grad_norm=nan: above 0, or null"),
        ("trainer.num_workers=-1", "trainer.num_workers=-1: 0 or more"),
        ("trainer.num_workers='2'", "trainer.num_workers=2: 0 or more"),
        ("trainer.prefetch_factor=0", "trainer.prefetch_factor=0: 1 or more"),
        ("trainer.loader_timeout_s=-5", "trainer.loader_timeout_s=-5: 1 or more"),
        ("trainer.group_timeout_s=0", "trainer.group_timeout_s=0: 1 or more"),
        ("trainer.val_every=0", "trainer.val_every=0: 1 or more"),
        ("trainer.poll_every=-1", "trainer.poll_every=-1: 1 or more, or null"),
        ("trainer.nonfinite_budget=-1", "trainer.nonfinite_budget=-1: 0 or more"),
        ("trainer.epochs=0", "trainer.epochs=0: 1 or more"),
        ("trainer.save_every_minutes=0", "trainer.save_every_minutes=0: above 0, or null"),
        ("trainer.early_stopping.patience=-1", "trainer.early_stopping.patience=-1: 0 or more, or null"),
        ("trainer.early_stopping.min_delta=-0.1", "trainer.early_stopping.min_delta=-0.1: 0 or more"),
        ("sequence_weight=-1", "sequence_weight=-1: 0 or more"),
        ("sequence_ramp_epochs=-2", "sequence_ramp_epochs=-2: 0 or more"),
        ("expect_processes=0", "expect_processes=0: 1 or more, or null"),
        ("seed=-1", "seed=-1: 0 or more"),
        ("final_parts=[foo]", "final_parts=.'foo'.: a list out of train, valid, test"),
        ("final_parts=test", "final_parts=test: a list out of train, valid, test"),
        ("trainer.loss_tile=fast", "trainer.loss_tile=fast: choose one of auto"),
    ],
)
def test_a_run_level_value_out_of_its_range_is_told_with_the_range_before_any_data_is_made(override, told):
    with pytest.raises(ConfigError, match=f"^{told}"):
        check(composed(override))


@pytest.mark.parametrize("override", ["trainer.max_grad_norm=null", "trainer.num_workers=0", "final_parts=[]", "final_parts=[train,test]"])
def test_the_ends_of_a_range_are_allowed(override):
    assert check(composed(override))["trainer"]["epochs"] == 8


def test_every_leaf_yaml_names_its_class_first_and_stays_short():
    for path in sorted(Path(CONF_DIR).glob("*/**/*.yaml")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if "experiment" in path.parts or lines[0].startswith("# @package"):
            continue
        assert len(lines) <= 20, f"{path}: {len(lines)} lines"
        first = next(line for line in lines if not line.startswith("#"))
        assert "base" in path.parts or first.startswith(("_target_:", "defaults:")), path


def test_the_answer_to_a_refused_resume_leaves_the_run_the_same():
    hashes = {config_hash(check(composed(*more)), NOT_HASHED) for more in ([], ["allow_world_change=true"], ["expect_processes=2"])}
    assert len(hashes) == 1
