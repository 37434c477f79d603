"""What a configuration of the source means to mmexpert: the overrides of mmexpert.train, with the reason of each."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from relaxed_json import Configuration
from superclip_keys import MONITORS, Given, shown

from mmexpert.types import ConfigError


@dataclass(frozen=True)
class Choices:
    """What the command line decides. beside: folder of the JSON, where class texts are looked for first."""

    beside: Path
    data_dir: str
    output_dir: str | None
    as_source: bool
    precision: str


@dataclass
class Translation:
    """One configuration in mmexpert's words. label: <image>_<text>, first part of the log's name. device: gpu_id, None for null."""

    label: str
    name: str
    device: str | None
    overrides: list[str] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, comment: str, *overrides: str) -> None:
        """Overrides with the reason for them."""
        self.comments.append(comment)
        self.overrides += overrides


def label_of(configuration: Configuration) -> str:
    """<image>_<text> with ':' and '/' replaced: the source's folder name."""
    given = Given(configuration)
    return f"{given['image_encoder_name']}_{given['text_encoder_name']}".replace(":", "_").replace("/", "_")


def translate(configuration: Configuration, label: str, choices: Choices) -> Translation:
    """The overrides of a configuration without faults, with the reason of each. Raises ConfigError for missing class texts."""
    given = Given(configuration)
    parent = Path(choices.output_dir).name if choices.output_dir else ""
    name = f"{parent}_{label}" if parent else label
    device = given["gpu_id"]
    line = Translation(label, name, None if device is None else str(device))
    if given.missing():
        line.add("(not given): the value of the source's own example stands in, a switch is off")
    line.add("the run's folder is outputs/NAME/...; NAME as in the source, after the last part of --output-dir", f"name={shown(name)}")
    _data(line, given, choices)
    _towers(line, given, choices)
    _loss(line, given)
    _balance(line, given, choices)
    _folds(line, given, choices)
    _training(line, given, choices)
    return line


def _data(line: Translation, given: Given, choices: Choices) -> None:
    root = f"dataset.root={shown(choices.data_dir)}"
    line.add("DATA_DIR or --data-dir; the radar parts of the default run are taken out", "dataset=image_folder", root)
    line.overrides += ["~encoder/radar", "~encoder/radar/fusion", "model.query=image", "evaluator=classification"]
    name = given["class_texts_file"]
    if name is not None:
        places = [choices.beside / name, Path(choices.data_dir) / name]
        texts = next((place for place in places if place.is_file()), None)
        if texts is None:
            where = given.configuration.place("class_texts_file")
            raise ConfigError(f"{where}: class_texts_file {shown(name)} is neither {places[0].absolute()} nor {places[1].absolute()}")
        line.add(given.said("class_texts_file") + f": found in {texts.parent}", f"dataset.class_texts={shown(str(texts.resolve()))}")
    elif "class_texts_file" in given:
        line.add("class_texts_file=null: class_texts.json of the data folder, else the names of the classes", "dataset.class_texts=auto")
    else:
        line.warnings.append("class_texts_file is not given: class_texts.json of the data folder is read, or give dataset.class_texts=FILE")
    line.add(given.said("augmentation", "img_size"), f"dataset.augmentation={shown(given['augmentation'])}")
    line.overrides += [f"encoder.image.side={given['img_size']}"]
    line.add(
        "films are grey: copied to the 3 channels of a pre-trained tower, with its mean and sd",
        "dataset.channels=3",
        "dataset.normalize=encoder",
    )


def _towers(line: Translation, given: Given, choices: Choices) -> None:
    image, text = str(given["image_encoder_name"]), str(given["text_encoder_name"])
    if image.startswith("clip:"):
        group, image, extra = "clip", image[5:], []
    else:
        group, extra = "timm", ["encoder.image.weights=pretrained", "encoder.image.in_chans=3"]
    line.add(
        given.said("image_encoder_name") + ": pre-trained; its learning rate is the source's",
        *[f"encoder/image={group}", f"encoder.image.name={shown(image)}", *extra, "encoder.image.lr_scale=1.0"],
    )
    group, text = ("clip", text[5:]) if text.startswith("clip:") else ("transformers", text)
    scale, why = (
        ("1.0", "one rate for both towers, as in the source") if choices.as_source else ("0.05", "1e-4 ruins a pre-trained text tower")
    )
    line.add(
        given.said("text_encoder_name") + f"; lr_scale {scale}: {why}",
        *[f"encoder/text={group}", f"encoder.text.name={shown(text)}", f"encoder.text.lr_scale={scale}"],
    )
    line.add(given.said("embed_dim"), f"model.projection_dim={shown(given['embed_dim'])}")


def _loss(line: Translation, given: Given) -> None:
    line.overrides.append("model/head=text")
    if given["use_superclip_loss"]:
        weights = ("class_loss_weight", "contrastive_loss_weight")
        line.add(given.said("use_superclip_loss", *weights), "loss=superclip", *[f"loss.{key}={given[key]}" for key in weights])
    else:
        line.add(given.said("use_superclip_loss") + ": CLIP loss alone, its two weights have no place", "loss=clip")
    line.add(given.said("temperature") + ": the learnable scale begins at its inverse", f"loss.temperature={given['temperature']}")


def _balance(line: Translation, given: Given, choices: Choices) -> None:
    apply, why = "loss", "the source's cross-entropy is weighted"
    if given["use_weighted_sampling"]:
        apply, why = "sampler", "weighted cross-entropy beside it would over-correct"
        if choices.as_source and given["use_superclip_loss"]:
            apply, why = "both", "as in the source: over-corrects by a further 1/n_k, and the results say so"
    if apply == "loss" and not given["use_superclip_loss"]:
        why = "without a class term nothing is weighted"
    line.add(given.said("use_weighted_sampling", "weight_method", "weight_smooth_factor") + f": {why}")
    line.overrides += [f"dataset.balance.method={given['weight_method']}", f"dataset.balance.smooth={given['weight_smooth_factor']}"]
    line.overrides += [f"dataset.balance.apply={apply}"]


def _folds(line: Translation, given: Given, choices: Choices) -> None:
    seed = given["random_state"]
    if not given["use_cv"]:
        line.add(given.said("use_cv", "random_state") + ": the set's own parts, n_splits has no place", "cv=none", f"cv.seed={seed}")
    else:
        groups = has_groups(Path(choices.data_dir))
        method, why = "stratified_group", "folds over patients, not images"
        if groups is None:
            why += f"; {choices.data_dir} is not here: where it has no column group, write cv=stratified"
        elif not groups:
            method, why = "stratified", "no groups are known"
            line.warnings.append(
                f"{choices.data_dir} has no metadata.csv with a column group: cv=stratified parts images, and two films of one patient "
                "may lie on both sides of a fold; give groups and write cv=stratified_group"
            )
        line.add(
            given.said("use_cv", "n_splits", "random_state") + f": {why}",
            *[f"cv={method}", f"cv.n_splits={given['n_splits']}", f"cv.seed={seed}"],
        )
        if choices.as_source:
            line.add("as in the source, the reported fold chooses the epoch: stamped optimistic", "cv.inner_val=0", "cv.selection=outer")
    line.overrides.append(f"seed={seed}")


def has_groups(root: Path) -> bool | None:
    """Whether a metadata.csv in root has a column group; None where root is not there to look at."""
    if not root.is_dir():
        return None
    table = root / "metadata.csv"
    if not table.is_file():
        return False
    with table.open(encoding="utf-8-sig", newline="") as lines:
        return "group" in next(csv.reader(lines), [])


def _training(line: Translation, given: Given, choices: Choices) -> None:
    line.add(given.said("batch_size", "epochs", "num_workers"))
    line.overrides += [f"trainer.{key}={given[key]}" for key in ("batch_size", "epochs", "num_workers")]
    line.add(given.said("learning_rate", "weight_decay") + "; AdamW and the schedule are mmexpert's, the source names none")
    line.overrides += [f"optimizer.lr={given['learning_rate']}", f"optimizer.weight_decay={given['weight_decay']}"]
    precision = choices.precision if given["use_amp"] else "no"
    line.add(
        given.said("use_amp") + (f": {precision}, see --precision" if given["use_amp"] else ""), f"trainer.mixed_precision={precision}"
    )
    monitor = MONITORS.get(str(given["early_stopping_monitor"]))
    stopping = [f"early_stopping_{key}" for key in ("patience", "min_delta", "monitor")]
    line.add(given.said(*stopping) + "; min_delta is absolute, of fractions 0..1 where it is no loss")
    line.overrides += [
        f"trainer.early_stopping.patience={shown(given[stopping[0]])}",
        f"trainer.early_stopping.min_delta={given[stopping[1]]}",
    ]
    line.overrides += [f"trainer.early_stopping.monitor={shown(monitor)}"]
    line.add("the best checkpoint goes by mAP: the loss moves with class weights and batch composition", "trainer.monitor=valid/map")
    line.add(given.said("save_best") + ": the best is always kept; checkpoint_best.pth, checkpoint_latest.pth beside it")
    line.overrides.append("trainer.export_pth=true")
    line.add(given.said("gpu_id") + ": device of --run without --gpus")
