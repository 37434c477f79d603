"""`python -m mmexpert.export run=RUN [format=model|torch|onnx] [role=ROLE] [out=PLACE]`: a trained model for use elsewhere.

run: a run folder, one of its folds or checkpoints, or a model/ folder. format: model (weights, configuration, tokenizer, model card:
mmexpert.load reads it, without the data), torch (torch.export) or onnx (extra mmexpert[onnx]): a graph a role, with dynamic batch,
checked against the model to 1e-4. role: image, text or radar; without it all of the model's. out: a folder, or with a role a .pt2 or
.onnx file; without it RUN/export (format=model: RUN/export/model). FILE.json beside a graph says what goes in and how it was prepared.
"""

import logging
import sys
from pathlib import Path

from mmexpert.command_line import launch, trust_list
from mmexpert.own_keys import own_values, shown_help
from mmexpert.run_place import CHECKPOINTS, WEIGHTS
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
OWN_KEYS = {"run": None, "format": "model", "role": None, "out": None}
FORMATS = ("model", "torch", "onnx")


def application() -> None:
    """The command."""
    if shown_help(__doc__):
        return
    for name in ("onnxscript", "onnx_ir"):  # they tell every pass of their optimizer
        logging.getLogger(name).setLevel(logging.WARNING)
    own = own_values(sys.argv[1:], OWN_KEYS)
    if own["run"] is None:
        raise ConfigError("run=RUN is needed: a run folder such as outputs/radar/default")
    form, role = own["format"], own["role"]
    if form not in FORMATS:
        raise ConfigError(f"format={form}: choose one of {', '.join(FORMATS)}")
    if form == "model" and role is not None:
        raise ConfigError(f"role={role}: a graph is of one role, format=model is of all; add format=torch or onnx")
    run = Path(own["run"])
    home = (run.parent if (run / WEIGHTS).exists() else run) / "export"
    if run.absolute().parent.name == CHECKPOINTS:
        home = run.absolute().parents[1] / "export" / run.name  # the weights of each in a folder of their own
    from mmexpert.loading import load

    model = load(run, "cpu", tuple(trust_list))
    if form == "model":
        log.info("%s", model.save(Path(own["out"] or home / "model")))
        return
    from mmexpert.engine.graph import SUFFIXES, check_format

    check_format(form)
    roles = [role] if role else list(model.model.encoders)
    if role and role not in model.model.encoders:
        raise ConfigError(f"role={role}: this model encodes {', '.join(model.model.encoders)}")
    place = Path(own["out"] or home)
    is_file = place.suffix in SUFFIXES.values()
    if is_file and (place.suffix != SUFFIXES[form] or not role):
        raise ConfigError(f"out={place}: a {SUFFIXES[form]} file of one role=, or a folder")
    for name in roles:
        file = place if is_file else place / f"{name}{SUFFIXES[form]}"
        parity = model.export(file, name, form)
        log.info("%s, %d bytes, differs from the model by at most %.1g", file, file.stat().st_size, parity)


def main() -> None:
    """Entry point of `python -m mmexpert.export` and mmexpert-export."""
    launch(application)


if __name__ == "__main__":
    main()
