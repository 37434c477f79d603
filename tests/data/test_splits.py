"""The hash rule of retrieval.md section 1: a group's part depends on the group, the seed and the shares alone."""

import hashlib

import pytest

from mmexpert.data.splits import hash_split
from mmexpert.types import ConfigError

GROUPS = [f"clip{i}" for i in range(2000)]


def test_the_part_follows_from_the_first_8_bytes_of_the_sha256():
    for group in GROUPS[:50]:
        digest = hashlib.sha256(f"3:{group}".encode()).digest()
        u = sum(byte * 256**i for i, byte in enumerate(digest[:8])) / 256**8
        assert hash_split(group, 0.1, 0.3, 3) == ("test" if u < 0.3 else "valid" if u < 0.4 else "train")


def test_the_parts_have_about_their_shares_and_another_seed_deals_anew():
    parts = [hash_split(group, 0.1, 0.2, 0) for group in GROUPS]
    assert abs(parts.count("valid") / 2000 - 0.1) < 0.02 and abs(parts.count("test") / 2000 - 0.2) < 0.03
    assert parts != [hash_split(group, 0.1, 0.2, 1) for group in GROUPS]


def test_a_larger_valid_part_takes_from_train_and_leaves_test_alone():
    for group in GROUPS:
        small, large = hash_split(group, 0.1, 0.2, 0), hash_split(group, 0.3, 0.2, 0)
        assert small == large or (small, large) == ("train", "valid")


@pytest.mark.parametrize("valid, test", [(-0.1, 0.1), (0.5, 0.5), (0.1, 1.0)])
def test_shares_that_leave_no_training_part_are_an_error(valid, test):
    with pytest.raises(ConfigError, match=f"valid={valid} and test={test}"):
        hash_split("a", valid, test, 0)
