"""Flags (`--batch_size 64`) of the source systems and other toolkits, answered with what to write here (docs/old_commands.md)."""

from collections.abc import Sequence

from mmexpert.key_hints import key_hint
from mmexpert.types import ConfigError

RENAMED_FLAGS = {
    "batch_size": ("trainer.batch_size", "64"),
    "num_workers": ("trainer.num_workers", "2"),
    "pin_memory": ("trainer.pin_memory", "true"),
    "prefetch_factor": ("trainer.prefetch_factor", "2"),
    "max_epochs": ("trainer.epochs", "8"),
    "num_epochs": ("trainer.epochs", "8"),
    "epochs": ("trainer.epochs", "8"),
    "validation_frequency": ("trainer.val_every", "1"),
    "device": ("trainer.device", "cpu"),
    "gradient_clip_norm": ("trainer.max_grad_norm", "1.0"),
    "lr": ("optimizer.lr", "1e-3"),
    "learning_rate": ("optimizer.lr", "1e-3"),
    "combiner_lr": ("optimizer.lr", "2e-5"),
    "weight_decay": ("optimizer.weight_decay", "0.01"),
    "version": ("name", "my_run"),
    "experiment_name": ("name", "my_run"),
    "submission_name": ("name", "my_submission"),
    "data_dir": ("dataset.root", "DIR"),
    "output_dir": ("hydra.run.dir", "DIR"),
    "save_dir": ("hydra.run.dir", "DIR"),
    "temperature": ("loss.temperature", "0.07"),
    "class_loss_weight": ("loss.class_loss_weight", "1.0"),
    "contrastive_loss_weight": ("loss.contrastive_loss_weight", "1.0"),
    "embed_dim": ("model.projection_dim", "256"),
    "img_size": ("encoder.image.side", "224"),
    "image_encoder": ("encoder.image.name", "resnet18"),
    "text_encoder": ("encoder.text.name", "NAME"),
    "class_texts_file": ("dataset.class_texts", "FILE"),
    "augmentation": ("dataset.augmentation", "standard"),
    "weight_method": ("dataset.balance.method", "inverse_freq"),
    "weight_smooth_factor": ("dataset.balance.smooth", "1.0"),
    "n_splits": ("cv.n_splits", "5"),
    "early_stopping_patience": ("trainer.early_stopping.patience", "10"),
    "early_stopping_min_delta": ("trainer.early_stopping.min_delta", "0.001"),
    "early_stopping_monitor": ("trainer.early_stopping.monitor", "valid/acc"),
    "clip_bs": ("cache_batch_size", "64"),
    "encoder": ("model.train_towers", "text"),
    "clip_model_path": ("model.towers", "RUN"),
    "hidden_dim": ("combiner.hidden_dim", "5120"),
    "combiner_path": ("combiner.weights", "FILE"),
    "combining_function": ("combiner", "sum"),
    "transform": ("dataset.transform.pad", "target"),
    "target_ratio": ("dataset.transform.target_ratio", "1.25"),
}
"""Their names -> the key here, and a value where none was typed."""

_IMPORT = "python scripts/import_superclip_config.py FILE --data-dir DIR, which prints the commands"
_LAUNCHER = "torchrun --nproc_per_node 4 -m mmexpert.train ...: the launcher says how many processes there are"
_MODEL = (
    "encoder/image=clip encoder/text=clip with encoder.image.name=ViT-B/32 encoder.text.name=ViT-B/32, or encoder/text=transformers "
    "encoder.text.name=NAME"
)
OLD_FLAGS = {
    "config": "experiment=radar",
    "config_file": _IMPORT,
    "multi_config": _IMPORT,
    "resume_checkpoint": "the same command again (it resumes), or init_from=RUN",
    "test": "python -m mmexpert.evaluate run=RUN split=test",
    "model_path": "python -m mmexpert.evaluate run=RUN split=test",
    "strategy": _LAUNCHER,
    "devices": _LAUNCHER,
    "gpus": "CUDA_VISIBLE_DEVICES=0,1 before the command, or -m ... sweep=gpu_queue hydra.launcher.gpus=[0,1]",
    "gpu_id": "CUDA_VISIBLE_DEVICES=0 before the command, or -m ... sweep=gpu_queue hydra.launcher.gpus=[0]",
    "precision": "trainer.mixed_precision=fp16, bf16 or no",
    "use_amp": "trainer.mixed_precision=fp16 or bf16",
    "model_name": _MODEL,
    "clip_model_name": "encoder.image.name=RN50x4 encoder.text.name=RN50x4",
    "projection_dim": "model.projection_dim=256, the width of the features; of a Combiner's sides: combiner.projection_dim=2560",
    "freeze_backbone": "encoder.image.freeze_backbone=true encoder.text.freeze_backbone=true",
    "use_siglip": "loss=siglip",
    "use_superclip_loss": "loss=superclip",
    "use_sequence_similarity": "similarity=combined",
    "use_weighted_sampling": "dataset.balance.apply=sampler",
    "use_cv": "cv=stratified_group",
    "random_state": "cv.seed=42, and seed=42 for weights and order",
    "dataset": "dataset=fashion_iq or dataset=cirr, with dataset.root=DIR",
    "save_training": "nothing: a run is always saved",
    "save_best": "nothing: the best of trainer.monitor is always kept, trainer.save_top_k of them",
    "workspace": "tracker=comet tracker.project=NAME; the workspace is COMET_WORKSPACE in the environment",
    "api_key": "tracker=comet tracker.mode=online, with COMET_API_KEY in the environment",
}
"""Further ones -> what to write here, whatever their value."""

_HYDRA = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--shell-completion"),
    *("--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info"),
)


def refuse_flag(argument: str, following: str, argv: Sequence[str], by_argparse: bool) -> None:
    """Raises ConfigError for a flag that is none of Hydra's, with the key to write and the value that was typed: behind it, or as the
    word that follows. by_argparse: the program has flags of its own, and answers unknown ones itself."""
    flag, separator, value = argument.partition("=")
    if not flag.startswith("--"):
        return
    name = flag.removeprefix("--").replace("-", "_")
    if name in RENAMED_FLAGS:
        key, example = RENAMED_FLAGS[name]
        raise ConfigError(f"{flag}: write {key}={(value if separator else following) or example}")
    if name in OLD_FLAGS:
        raise ConfigError(f"{flag}: write {OLD_FLAGS[name]}")
    if not by_argparse and not any(known.startswith(flag) for known in _HYDRA):  # argparse takes a beginning for the whole
        meant = key_hint(name, [other for other in argv if not other.startswith("-")])
        hint = meant.removeprefix(":") if f".{name}'" in meant else " There is no such flag;"
        raise ConfigError(f"{flag}:{hint} keys are written key=value, such as trainer.epochs=8, and --help lists them")
