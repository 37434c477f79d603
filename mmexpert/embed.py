"""`python -m mmexpert.embed run=RUN images=FOLDER|texts=FILE|clips=FOLDER [name=NAME]`: features of many inputs, to be searched.

run: a run folder, one of its folds or checkpoints, or a model/ folder. images: pictures below a folder. texts: a sentence a line,
UTF-8. clips: radar clips below a folder, `a/<view>/x.npy` (one file a view) or `a/x.npz` (members named as the views). name: of the
index; without it the folder's or file's. on_error: stop | skip (what can not be read is left out and listed in failed.csv). device:
auto | cpu | cuda.
Writes outputs/embed/NAME/: features.npy fp32 [N, D] of length 1, names.json (sorted), meta.json. Search it with mmexpert.search.
"""

import logging
import sys
from pathlib import Path

from mmexpert.command_line import launch, trust_list
from mmexpert.own_keys import own_values, plain_name, shown_help
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
OWN_KEYS = {"run": None, "images": None, "texts": None, "clips": None, "name": None, "on_error": "stop", "device": "auto"}
ROLES = {"images": "image", "texts": "text", "clips": "radar"}


def application() -> None:
    """The command."""
    if shown_help(__doc__):
        return
    own = own_values(sys.argv[1:], OWN_KEYS)
    if own["run"] is None:
        raise ConfigError("run=RUN is needed: a run folder such as outputs/radar/default")
    given = [key for key in ROLES if own[key] is not None]
    if len(given) != 1:
        raise ConfigError(f"one of images=FOLDER, texts=FILE, clips=FOLDER is needed, {' and '.join(given) or 'none'} is given")
    if own["on_error"] not in ("stop", "skip"):
        raise ConfigError(f"on_error={own['on_error']}: choose stop or skip")
    place = Path(own[given[0]])
    name = plain_name(own["name"] or place.resolve().stem)
    from mmexpert.embed_index import embed, write_index
    from mmexpert.embed_inputs import inputs_of
    from mmexpert.loading import load

    model = load(own["run"], own["device"], tuple(trust_list))
    inputs = inputs_of(ROLES[given[0]], place, model)
    features, names, failed = embed(model, inputs, own["on_error"])
    folder = write_index(Path("outputs/embed") / name, features, names, failed, inputs, model, Path(own["run"]))
    listed = f"; {len(failed)} failed, listed in {folder / 'failed.csv'}" if failed else ""
    log.info("%d %s embedded, in %s%s", len(names), given[0], folder, listed)


def main() -> None:
    """Entry point of `python -m mmexpert.embed` and mmexpert-embed."""
    launch(application)


if __name__ == "__main__":
    main()
