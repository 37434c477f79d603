"""What each tracking service asks for, and its traps: one class a service. Nothing is imported before a run chooses it."""

import os
from pathlib import Path
from typing import Any

from mmexpert.engine.tracker_base import PACKAGE, Service, Start, pixels, sources


class TensorBoard(Service):
    """Event files in RUN/tensorboard; a new file at each resume. No tags, groups or ids; the host's name is part of the file's."""

    module, config_once = "tensorboard", True  # each statement would be another run in the table of hyperparameters

    def picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """As uint8 [1, H, W, 3]; the default order is channels first."""
        tracker.log_images({name: pixels(path)}, step=step, dataformats="NHWC")


class Wandb(Service):
    """RUN/wandb/offline-run-*, sent later by `wandb sync`."""

    module, key = "wandb", "WANDB_API_KEY"
    environment = {"WANDB_ERROR_REPORTING": "false"}

    def has_key(self) -> bool:
        """From the environment, or where `wandb login` puts it."""
        return super().has_key() or _in_netrc("api.wandb.ai")

    def options(self, start: Start) -> dict[str, Any]:
        """private: no host, command line, git state, machine, packages or load."""
        import wandb

        hidden = {"x_disable_meta": True, "x_disable_machine_info": True, "x_disable_stats": True, "x_save_requirements": False}
        settings = {"console": "off", "disable_code": True, "disable_git": start.private} | (hidden | {"host": ""} if start.private else {})
        return {
            "name": start.name,
            "id": start.run_id,
            "resume": None if start.offline else "allow",  # offline it is `wandb sync` that joins runs of one id
            "mode": "offline" if start.offline else "online",
            "dir": str(start.folder),
            "group": start.group,
            "tags": start.tags,
            "settings": wandb.Settings(**settings),
        } | ({"job_type": start.job} if start.job else {})

    def opened(self, tracker: Any, start: Start) -> str:
        """Code as files of the run: wandb's log_code would put a copy below the user's home."""
        if start.log_code and not start.resumed:
            for path in sources():
                tracker.tracker.save(str(path), base_path=str(PACKAGE.parent), policy="now")
        return start.run_id


class SwanLab(Service):
    """RUN/swanlab, sent later by `swanlab sync`."""

    module, key = "swanlab", "SWANLAB_API_KEY"

    def has_key(self) -> bool:
        """From the environment, or where `swanlab login` puts it."""
        return super().has_key() or (Path.home() / ".swanlab" / ".netrc").is_file()

    def options(self, start: Start) -> dict[str, Any]:
        """private: no host, command line, git state, packages or load; a project that others see not."""
        import swanlab

        probes = ("hardware", "runtime", "requirements", "conda", "git", "swanlab", "monitor")
        probe = dict.fromkeys(probes, False) if start.private else {}
        return {
            "name": start.name,
            "id": start.run_id,
            "resume": "allow",
            "mode": "offline" if start.offline else "online",
            "log_dir": str(start.folder / "swanlab"),
            "public": not start.private,
            "group": start.group,
            "job_type": start.job or None,
            "tags": start.tags,
            "settings": swanlab.Settings(interactive=False, terminal={"proxy_type": "none"}, probe=probe),
        }


class Comet(Service):
    """RUN/comet/*.zip, sent later by `comet upload`."""

    module, key = "comet_ml", "COMET_API_KEY"
    environment = {"COMET_DISABLE_AUTO_LOGGING": "1"}  # its import would patch mlflow, whose runs then become runs of Comet too

    def options(self, start: Start) -> dict[str, Any]:
        """private: no host, command line, git state, machine or network."""
        import comet_ml

        told = not start.private
        environment = dict.fromkeys(("details", "gpu", "host", "cpu", "network", "disk"), told)
        config = comet_ml.ExperimentConfig(
            name=start.name,
            tags=start.tags,
            offline_directory=str(start.folder / "comet"),
            log_code=False,  # it would send the file of the command; see opened
            log_git_metadata=told,
            log_git_patch=False,
            **{f"log_env_{name}": value for name, value in environment.items()},
            parse_args=False,
            display_summary_level=0,
            auto_output_logging=False,
            auto_param_logging=False,
            auto_metric_logging=False,
            auto_log_co2=False,
        )
        # not "get" when resumed: a killed sitting has left no archive that could be uploaded before
        return {"online": not start.offline, "experiment_key": start.run_id, "mode": "get_or_create", "experiment_config": config}

    def opened(self, tracker: Any, start: Start) -> str:
        """Group and job as values, since Comet has neither; the sources of this package."""
        for name, value in (("group", start.group), ("job", start.job)):
            if value:
                tracker.tracker.log_other(name, value)
        if start.log_code and not start.resumed:
            tracker.tracker.log_code(folder=str(PACKAGE))
        return start.run_id

    def picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """By file: Accelerate's tracker takes no pictures."""
        tracker.tracker.log_image(str(path), name=name, step=step)


class Mlflow(Service):
    """Offline a local folder, RUN/mlflow; online the server that MLFLOW_TRACKING_URI names."""

    module, key, config_once = "mlflow", "MLFLOW_TRACKING_URI", True  # a parameter that changes its value is an error there
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}

    def prepare(self, start: Start) -> None:
        """Sets the store: Accelerate's logging_dir is that of the artifacts alone."""
        super().prepare(start)
        import mlflow

        mlflow.set_tracking_uri(_store(start).as_uri() if start.offline else os.environ[self.key])

    def options(self, start: Start) -> dict[str, Any]:
        """private: user and program in the service's own tags are emptied; it stores no host."""
        own = ("mlflow.user", "mlflow.source.name", "mlflow.source.git.commit") if start.private else ()
        tags = dict.fromkeys(own, "-") | dict.fromkeys(start.tags, "true")
        tags |= {name: value for name, value in (("group", start.group), ("job", start.job)) if value}
        return {"run_name": start.name, "tags": tags} | ({"run_id": start.run_id} if start.resumed else {})

    def opened(self, tracker: Any, start: Start) -> str:
        """The id that the store has given."""
        if start.log_code and not start.resumed:
            for path in sources():
                tracker.log_artifact(str(path), f"code/{path.parent.relative_to(PACKAGE.parent).as_posix()}")
        return tracker.tracker.info.run_id

    def row(self, values: dict[str, float]) -> dict[str, float]:
        """No @ in names."""
        return {name.replace("@", "_at_"): value for name, value in values.items()}

    def picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """As a file of the run."""
        tracker.log_artifact(str(path), "plots")


SERVICES: dict[str, Service] = {
    "tensorboard": TensorBoard(), "wandb": Wandb(), "swanlab": SwanLab(), "comet": Comet(), "mlflow": Mlflow(),
}  # fmt: skip


def _store(start: Start) -> Path:
    return (start.folder / "mlflow").resolve()


def _in_netrc(host: str) -> bool:
    import netrc

    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
