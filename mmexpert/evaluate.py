"""`python -m mmexpert.evaluate run=RUN [split=test] [overrides]`: scores a stored run's weights again.

run: a run folder, one of its folds, a folder below checkpoints/, or the run's model/. split: train, valid or test (the default) of the
run's own folds. checkpoint: best, last, or a folder's name below checkpoints/; without it what the run reports, once it is finished.
Other overrides change the stored configuration: `evaluator.k=[1,5]` a value, `evaluator=retrieval` a node. Writes RUN/evaluate/SPLIT/,
with the overrides in its name where there are any (`test,evaluator.combine=image`).

With dataset.root=DIR, dataset=NAME (or another key of the data set) other data is scored. Of the same classes: predicted by the mean
probability of the fold models, all its rows, or those of split; writes RUN/evaluate/other_DIR/, further overrides in its name. Without
classes: the other data's own test part (or split), by each fold's model; all its rows where it has no parts.

`python -m mmexpert.evaluate features=FILE.npz evaluator.protocol=fashioniq|cirr [evaluator.combine=sum|normalised_sum|text|image] [name=]`:
scores features that another program has made (composed retrieval). Writes outputs/evaluate/NAME/metrics.json.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmexpert.command_line import composed, groups, launch, run_folder, trust_list
from mmexpert.config import suggest
from mmexpert.engine.slurm import adopt_slurm
from mmexpert.own_keys import Own, own_and_overrides, shown_help
from mmexpert.run_place import run_place
from mmexpert.types import ConfigError, RunFolderError

_SHOWN = 5  # runs that a message names
OWN_KEYS = {"run": None, "features": None, "split": None, "checkpoint": None}


def application() -> None:
    """The command."""
    if shown_help(__doc__):
        return
    own, overrides = own_and_overrides(sys.argv[1:], OWN_KEYS)
    if own["features"] is not None:
        if own["run"] is not None:
            raise ConfigError("run= and features= are two things to score: give one of them")
        from mmexpert.feature_scores import evaluate_features

        evaluate_features(Path(own["features"]), overrides, tuple(trust_list))
        return
    if own["run"] is None:
        raise ConfigError("run=RUN is needed: a run folder such as outputs/radar/default")
    if any(override.startswith("name=") for override in overrides):
        raise ConfigError("name= goes with features=; the result of a run lies in RUN/evaluate, named by split and overrides")
    place = run_place(Path(own["run"]), own["checkpoint"])
    folder, own["checkpoint"] = place.folder, place.checkpoint
    stored = stored_run(folder)
    plain = overridden(stored, overrides, OWN_KEYS)
    if own["checkpoint"] is None and any(re.match(r"dataset[.=]", override) for override in overrides):
        from mmexpert.other_films import evaluate_other

        root = str(plain["dataset"].get("root", plain["dataset"]["_target_"]))
        rest = [override for override in overrides if not override.startswith("dataset.root=")]
        name = result_name(f"other_{Path(root).name}", own, rest)
        if evaluate_other(plain, folder, own["split"], tuple(trust_list), name) is not None:
            return
    from mmexpert.scoring import evaluate_run

    configs = {path.parent.name: overridden(stored_run(path.parent), overrides) for path in folder.glob("fold_*/config.json")}
    name = result_name(own["split"] or "test", own | {"split": None}, overrides)
    evaluate_run(plain, folder, own["split"], own["checkpoint"], tuple(trust_list), configs, name)


def result_name(start: str, own: Own, overrides: list[str]) -> str:
    """Folder below RUN/evaluate: one for each thing that can change the figures, so that no result takes another's place."""
    changed = [f"{key}={own[key]}" for key in ("split", "checkpoint") if own[key] != OWN_KEYS[key]]
    named = run_folder([*changed, *overrides])
    return start if named == "default" else f"{start},{named}"


def stored_run(folder: Path) -> dict[str, Any]:
    """The configuration that a run folder (or the run of a fold) holds, as plain data: no interpolation of it is ever resolved."""
    for candidate in (folder, folder.parent):
        path = candidate / "config.json"
        if path.exists():
            text = path.read_text(encoding="utf-8")
            if "${" in text:
                raise ConfigError(f"{path}: a stored configuration is plain data, but it holds '${{'")
            stored = json.loads(text)
            if isinstance(stored.get("config"), dict):
                return stored["config"]
    below = _runs(folder, "*") or _runs(folder, "*/*")
    there = below or _runs(Path("outputs"), "*/*")
    known = f"; {'below it there are' if below else 'there are'} {', '.join(there[:_SHOWN])}" if there else ""
    raise RunFolderError(f"{folder} holds no run: there is no config.json in it{known}")


def _runs(folder: Path, pattern: str) -> list[str]:
    found = sorted(path.parent for path in folder.glob(f"{pattern}/config.json"))
    return [f"run={path}" for path in found if path.name != "model"]  # which lies inside a run


def overridden(stored: dict[str, Any], overrides: list[str], own: Iterable[str] = ()) -> dict[str, Any]:
    """The stored configuration with values changed and nodes replaced. Raises ConfigError for keys that it does not have.

    own: the command's own keys, which a misspelt one may have meant.
    """
    cfg = OmegaConf.create(stored)
    OmegaConf.set_struct(cfg, True)
    options = groups()
    for override in overrides:
        key, _, value = override.partition("=")
        if key in options:
            node = OmegaConf.select(composed(override), key.replace("/", "."))
            OmegaConf.update(cfg, key.replace("/", "."), node, merge=False, force_add=True)
            continue
        try:
            OmegaConf.update(cfg, key, OmegaConf.create(f"value: {value}").value, merge=False)
        except OmegaConfBaseException as error:
            parent = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
            known = [str(name) for name in parent] if OmegaConf.is_dict(parent) else []
            known += [] if "." in key else own
            who = "the stored run has" if "." in key or not own else "command and stored run have"
            raise ConfigError(f"{key}: {who} no such key{suggest(key.rsplit('.', 1)[-1], known)}") from error
    return OmegaConf.to_container(cfg, resolve=True)


def main() -> None:
    """Entry point of `python -m mmexpert.evaluate` and mmexpert-evaluate."""
    adopt_slurm()
    launch(application)


if __name__ == "__main__":
    main()
