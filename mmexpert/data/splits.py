"""The hash rule by which sets without parts of their own are split: adding records moves no old one."""

import hashlib

from mmexpert.types import ConfigError


def hash_split(group: str, valid: float, test: float, seed: int) -> str:
    """train, valid or test of a group: u = first 8 bytes of SHA-256("SEED:GROUP") / 2^64; test below `test`, then valid."""
    if any(not isinstance(share, (int, float)) or not share >= 0 for share in (valid, test)) or valid + test >= 1:
        raise ConfigError(f"dataset.split: valid={valid} and test={test} are shares whose sum stays below 1")
    u = int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "little") / 2**64
    if u < test:
        return "test"
    return "valid" if u < test + valid else "train"
