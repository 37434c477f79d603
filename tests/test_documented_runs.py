"""Every command in README and docs runs as it is printed, made small: sizes are added at its end, and it finds a small DIR, RUN, FILE ...

test_documented_commands.py only composes them. `pytest -m slow -n 0 tests/test_documented_runs.py`: see CONTRIBUTING.md.
"""

import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from clip_files import views_of
from documented import ROOT
from documented_workshop import COMMANDS, Workshop

import mmexpert
from mmexpert.engine.status import read_status

FOUR_GPUS = "four GPUs"
SLURM = "srun is a cluster's"
TWO_MACHINES = "two machines"
NOT_RUN = {  # composed by test_documented_commands.py alone
    "accelerate launch --num_processes 4 -m mmexpert.train": FOUR_GPUS,
    "accelerate launch --config_file scripts/accelerate/multi_gpu.yaml -m mmexpert.train expect_processes=4": FOUR_GPUS,
    "accelerate launch --config_file scripts/accelerate/fsdp.yaml -m mmexpert.train encoder/text=transformers "
    "encoder.text.name=bert-large-uncased": FOUR_GPUS,
    "accelerate launch --config_file scripts/accelerate/two_nodes.yaml --machine_rank 0 -m mmexpert.train expect_processes=8": TWO_MACHINES,
    "torchrun --nnodes 2 --nproc_per_node 4 --node_rank 0 --master_addr ADDRESS --master_port 29500 -m mmexpert.train "
    "expect_processes=8": TWO_MACHINES,
    "srun --ntasks-per-node 4 python -m mmexpert.train": SLURM,
    "srun --nodes 1 --ntasks-per-node 4 python -m mmexpert.train expect_processes=4": SLURM,
    "srun python -m mmexpert.train trainer.batch_size=1024 trainer.mixed_precision=bf16 expect_processes=8": SLURM,
    "python scripts/import_superclip_config.py FILE --run --gpus 0,1": "its lines name pretrained towers of the hub",
    "python scripts/import_superclip_config.py FILE --data-dir DIR --run --gpus 0,1": "its lines name pretrained towers of the hub",
}
LEAVES = (  # sign of a command -> the files of which it writes some, what it prints
    ("--help", "", "== Config groups"), ("dry_run=true", "", "absent"), ("mmexpert.train", "outputs/*/*/metrics.json outputs/*/*/cv_summary.json", ""),
    ("cv split", "outputs/*/*/folds_info.json", "fold 2: "), ("cv status", "", "done"), ("cv compare", "DIR/comparison.md", ""),
    ("check_data", "outputs/data_checks/*.json", ""), ("features=FILE.npz", "outputs/evaluate/*/metrics.json", ""),
    ("mmexpert.evaluate", "**/evaluate/*/*.json", ""), ("mmexpert.sweep", "outputs/radar/sweep.html", ""), ("--out FILE", "FILE", ""),
    ("mmexpert.report", "outputs/comparison.html", ""), ("mmexpert.embed", "outputs/embed/*/features.npy", ""),
    ("mmexpert.search", "outputs/search/*/results.json", ""), ("submit check", "", "no fault, 6 queries"),
    ("mmexpert.submit", "RUN/submission/recall_submission_*.json", ""), ("mmexpert.export", "RUN/export/model/model.safetensors", ""),
    ("make_scenes", "DIR/images/*.png", ""), ("make_hip_phantom", "DIR/metadata.csv", ""), ("--write lines.txt", "lines.txt", ""),
    ("import_superclip", "", "python -m mmexpert.train"), ("make_config_reference", "conf/README.md", ""),
    ("compare_queries", "", "| runs |"), ("kill_campaign", "", " 0 mismatches"), ("torture", "docs/torture.md", " 0 lost"),
    ("fuzz_readers", "", " 0 with a foreign error"), ("bench_all", "docs/benchmarks.md", ""),
)  # fmt: skip


@pytest.fixture(scope="module")
def workshop(clip_folder: Path, bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(ROOT))
        root = tmp_path_factory.mktemp("documented")
        yield Workshop(root, {"CLIP": clip_folder, "BERT": bert_folder})
        shutil.rmtree(root)  # gigabytes of runs; what a failed command has printed is told


def test_each_documented_command_is_run_or_says_why_not():
    assert not set(NOT_RUN) - set(COMMANDS), "no page has these any more"
    assert all(any(sign in command for sign, *_ in LEAVES) for command in COMMANDS)


@pytest.mark.slow  # 10 to 15 minutes in all
@pytest.mark.parametrize("command", names := sorted(set(COMMANDS) - set(NOT_RUN)), ids=names)
def test_a_documented_command_does_what_it_is_there_for(command, workshop):
    done = workshop.ran(command)
    assert done.code == 0, done.output[-4000:]
    patterns, printed = next((patterns, printed) for sign, patterns, printed in LEAVES if sign in command)
    assert printed in done.output
    found = [path for pattern in patterns.split() for path in done.find(pattern)]
    assert found or not patterns, sorted(done.fresh)
    for run in {path.parent for path in found if "mmexpert.train" in command}:
        assert read_status(done.folder / run).state == "done"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_python_of_a_page_scores_saves_and_exports(page, workshop, tmp_path, monkeypatch):
    [code] = re.findall(r"^    import mmexpert\n(?:    .*\n)+", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    workshop.lay("outputs/radar/default", tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"clip": views_of(0)}
    exec(textwrap.dedent(code), names)
    model, score = names["model"], names["scores"].item()
    model.save("given")
    model.export("radar.pt2", "radar", format="torch")
    again = mmexpert.load("given")
    assert again.similarity(again.encode_text("a person walks toward the radar"), again.encode_radar(names["clip"])).item() == score
    assert -1 <= score <= 1 and Path("radar.pt2").is_file()
