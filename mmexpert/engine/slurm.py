"""srun's tasks as the ranks of a process group. Without torch: the command line has to know its rank before anything is trained."""

import os


def adopt_slurm() -> None:
    """Maps srun's variables to RANK, LOCAL_RANK, WORLD_SIZE and MASTER_*, where no launcher has set them.

    Comes first in main(): whatever reads RANK before would take every task for the first process.
    """
    slurm = os.environ
    if "RANK" in slurm or int(slurm.get("SLURM_NTASKS", "1")) < 2 or "SLURM_PROCID" not in slurm:
        return
    os.environ["RANK"], os.environ["LOCAL_RANK"] = slurm["SLURM_PROCID"], slurm.get("SLURM_LOCALID", "0")
    os.environ["WORLD_SIZE"] = slurm["SLURM_NTASKS"]
    os.environ.setdefault("MASTER_ADDR", slurm.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
    os.environ.setdefault("MASTER_PORT", str(20000 + int(slurm.get("SLURM_JOB_ID", "0")) % 20000))
