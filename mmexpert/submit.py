"""`python -m mmexpert.submit run=RUN split=test1 name=NAME [overrides]`: the two files for CIRR's test server.

run: a run folder, one of its checkpoints, or its model/. split: test1, or val to compare with evaluate; short for dataset.split.
Writes RUN/submission/recall_submission_NAME.json and recall_subset_submission_NAME.json after they pass the check.
`python -m mmexpert.submit check=A.json[,B.json] run=RUN|dataset=cirr dataset.root=DIR split=test1`: the check alone, of files
that are there; needs no pictures. Two files are also compared with each other.
"""

import logging
import re
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmexpert.command_line import composed, launch, trust_list
from mmexpert.evaluate import overridden, stored_run
from mmexpert.own_keys import own_and_overrides, shown_help
from mmexpert.run_place import run_place
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
OWN_KEYS = {"run": None, "split": None, "check": None, "name": None}


def application() -> None:
    """The command. Raises DataError with all faults."""
    if shown_help(__doc__):
        return
    own, overrides = own_and_overrides(sys.argv[1:], OWN_KEYS)
    if own["split"] is not None:
        if any(override.startswith("dataset.split=") for override in overrides):
            raise ConfigError("split= and dataset.split= are one key: give one of them")
        overrides.append(f"dataset.split={own['split']}")
    cfg = configuration(own["run"], overrides)
    from mmexpert import submitting

    if own["check"]:
        # run folders hold commas: only one behind .json parts two files
        submitting.check([Path(name) for name in re.split(r"(?<=\.json),", own["check"])], cfg["dataset"])
        return
    if own["run"] is None or own["name"] is None:
        raise ConfigError("run=RUN and name=NAME are needed, or check=A.json,B.json")
    if set(own["name"]) & set("/\\\0") or own["name"] in ("", ".", ".."):
        raise ConfigError(f"name={own['name']}: it becomes part of a file name")
    submitting.submit(cfg, Path(own["run"]), own["name"], tuple(trust_list))


def configuration(run: str | None, overrides: list[str]) -> dict[str, Any]:
    """The run's configuration with values changed; without a run, that of `dataset=cirr` with the overrides."""
    if run is not None:
        cfg = overridden(stored_run(run_place(Path(run), None).folder), overrides, OWN_KEYS)
    else:
        cfg = {
            "dataset": OmegaConf.to_container(
                composed("dataset=cirr", *(o for o in overrides if o != "dataset=cirr")).dataset, resolve=True
            )
        }
    dataset = cfg["dataset"]
    if dataset["_target_"] != "mmexpert.data.cirr.Cirr":
        raise ConfigError(f"submissions are those of CIRR; the data set is {dataset['_target_']}: choose dataset=cirr")
    if dataset["root"] == "???":
        raise ConfigError("dataset.root has no value yet: write dataset.root=DIR, the folder of captions/ and image_splits/")
    if not dataset["split"]:
        raise ConfigError("dataset.split has no value: write split=test1 (or val, to compare the files with evaluate)")
    return cfg


def main() -> None:
    """Entry point of `python -m mmexpert.submit`."""
    launch(application)


if __name__ == "__main__":
    main()
