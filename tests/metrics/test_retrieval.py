"""Retrieval metrics against the test vector of spec/retrieval.md section 5 (agreed by two programs) and hand cases."""

import hashlib
import math

import numpy as np
import pytest
import torch

from mmexpert.metrics.retrieval import chance_recall, effective_rank, hubness, retrieval_metrics, similarity_metrics
from mmexpert.types import DataError, NonFiniteError

ROLES = ("image", "text")


def noise(name, width=48):
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * width), dtype="<u4") / 2**31 - 1.0


def length(name):
    return 0.5 + hashlib.sha256(f"scale:{name}".encode()).digest()[0] / 256


@pytest.fixture(scope="module")
def vector():
    """200 image and 1,000 caption features, D = 48."""
    names = [f"img{i:04d}" for i in range(200)]
    images = np.stack([length(name) * noise(f"image:{name}") for name in names])
    captions = np.stack([0.25 * noise(f"image:{name}") + noise(f"text:{name}#{k}") for name in names for k in range(5)])
    return torch.from_numpy(images).float(), torch.from_numpy(captions).float()


EXPECTED = {
    1: {
        "image_to_text": {"hits@1": 51, "hits@5": 131, "hits@10": 156, "mean_rank": 8.33, "median_rank": 3, "MRR": 0.434766}
        | {"hub_share": 0.015, "hub_skew": 0.617814, "unreached": 0.119, "hard_negative": 0.445541, "queries": 200, "gallery": 1000},
        "text_to_image": {"hits@1": 161, "hits@5": 382, "hits@10": 494, "mean_rank": 23.355, "median_rank": 11, "MRR": 0.275464}
        | {"hub_share": 0.011, "hub_skew": 0.229357, "unreached": 0.0, "hard_negative": 0.384167, "queries": 1000, "gallery": 200},
        "both": {"RSum": 272.7, "positive_similarity": 0.240774, "negative_similarity": 0.000367, "similarity_gap": 0.240407}
        | {"positive_std": 0.133633, "negative_std": 0.144478},
    },
    2: {
        "image_to_text": {"hits@1": 51, "hits@5": 132, "hits@10": 157, "mean_rank": 7.43, "median_rank": 3},
        "text_to_image": {"hits@1": 165, "hits@5": 397, "hits@10": 517, "mean_rank": 19.765, "median_rank": 10},
        "both": {"RSum": 277.9, "positive_similarity": 0.122575, "negative_similarity": 0.000347, "similarity_gap": 0.122229},
    },
}


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "mean"])
@pytest.mark.parametrize("images_a_key", EXPECTED)
def test_the_test_vector_is_met_and_no_hit_depends_on_the_tie_rule(vector, images_a_key, ties):
    keys = torch.arange(200) // images_a_key
    metrics, _ = retrieval_metrics(*vector, keys, keys.repeat_interleave(5), ROLES, (1, 5, 10), ties)
    expected = EXPECTED[images_a_key]
    for name in ("image_to_text", "text_to_image"):
        for key, value in expected[name].items():
            assert metrics[f"{name}_{key}"] == pytest.approx(value, abs=0 if key.startswith("hits") else 1e-6), (name, key)
    for key, value in expected["both"].items():
        assert metrics[key] == pytest.approx(value, abs=1e-6), key


def test_the_test_vectors_effective_ranks(vector):
    keys = torch.arange(200)
    metrics, _ = retrieval_metrics(*vector, keys, keys.repeat_interleave(5), ROLES)
    assert metrics["image_effective_rank"] == pytest.approx(46.5188, abs=1e-4)
    assert metrics["text_effective_rank"] == pytest.approx(47.7175, abs=1e-4)


def test_recalls_are_percent_of_hits_and_rsum_adds_six_of_them_whatever_k_is_asked(vector):
    keys = torch.arange(200)
    metrics, _ = retrieval_metrics(*vector, keys, keys.repeat_interleave(5), ROLES, (1, 3))
    assert metrics["image_to_text_R@1"] == pytest.approx(100 * 51 / 200) and metrics["text_to_image_R@1"] == pytest.approx(16.1)
    assert "image_to_text_R@3" in metrics and "image_to_text_R@5" not in metrics
    assert metrics["RSum"] == pytest.approx(272.7)


def test_captions_of_one_image_are_no_negatives_of_each_other():
    one = torch.tensor([[1.0, 0.0]])
    captions = torch.tensor([[0.6, 0.8], [1.0, 0.1]])
    metrics, rankings = retrieval_metrics(one, captions, torch.tensor([4]), torch.tensor([4, 4]), ROLES)
    assert rankings["image_to_text"].rank.tolist() == [1.0]
    assert "negative_similarity" not in metrics and "similarity_gap" not in metrics and "image_to_text_hard_negative" not in metrics


def test_an_even_number_of_queries_has_the_mean_of_the_middle_ranks_as_median():
    scores = torch.eye(4)
    scores[3] = torch.tensor([3.0, 2.0, 1.0, 0.5])  # rank 4; the others rank 1
    metrics, _ = retrieval_metrics(scores, torch.eye(4), torch.arange(4), torch.arange(4), ROLES)
    assert metrics["image_to_text_median_rank"] == 1.0 and metrics["image_to_text_mean_rank"] == 7 / 4
    assert metrics["image_to_text_MRR"] == pytest.approx((3 + 1 / 4) / 4)


@pytest.mark.parametrize("m, k", [(1, 1), (1, 10), (3, 5), (3, 30), (5, 40)])
def test_chance_is_the_share_of_random_orders_with_a_positive_among_the_first_k(m, k):
    gallery = 30
    keys = torch.cat([torch.zeros(m, dtype=torch.long), torch.arange(1, gallery - m + 1)])
    missed = 1.0
    for place in range(min(k, gallery)):  # drawn one by one, none of them a positive
        missed *= max(0, gallery - m - place) / (gallery - place)
    assert chance_recall(torch.tensor([0]), keys, k) == pytest.approx(100 * (1 - missed), abs=1e-9)


def test_chance_averages_over_queries_that_can_be_answered():
    keys = torch.tensor([0, 0, 1, 2])
    assert chance_recall(torch.tensor([0, 1, 77]), keys, 1) == pytest.approx(100 * (2 / 4 + 1 / 4) / 2)


def test_hubness_is_left_out_of_small_galleries_and_zero_skew_where_all_rows_are_met_alike():
    top = torch.arange(30).view(3, 10)
    assert hubness(top, 20, "d") == {}
    assert hubness(top, 30, "d") == {"d_hub_share": 1 / 3, "d_hub_skew": 0.0, "d_unreached": 0.0}


def test_hub_skew_is_scipys_population_skewness():
    from scipy.stats import skew

    top = torch.randint(0, 40, (25, 10), generator=torch.Generator().manual_seed(0))
    counts = np.bincount(top.flatten().numpy(), minlength=40)
    assert hubness(top, 40, "d")["d_hub_skew"] == pytest.approx(skew(counts), rel=1e-9)


def test_a_collapsed_model_has_effective_rank_one_one_hub_and_ranks_last():
    same = torch.ones(100, 8)
    metrics, _ = retrieval_metrics(same, same, torch.arange(100), torch.arange(100), ROLES)
    assert metrics["image_effective_rank"] == pytest.approx(1) and metrics["image_to_text_hub_share"] == 1.0
    assert metrics["image_to_text_mean_rank"] == 100 and metrics["RSum"] == 0


def test_effective_rank_of_orthogonal_rows_is_their_number():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)


def test_histograms_hold_every_pair_once_and_their_bins_span_minus_one_to_one():
    query, target = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    metrics, histograms = similarity_metrics(query, target, torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert [i for i, n in enumerate(histograms["positive"]) if n] == [30, 59] and sum(histograms["positive"]) == 2
    assert [i for i, n in enumerate(histograms["negative"]) if n] == [0, 30] and len(histograms["negative"]) == 60
    assert metrics["positive_similarity"] == 0.5 and metrics["negative_similarity"] == -0.5 and metrics["positive_std"] == 0.5


@pytest.mark.parametrize("fault", [math.nan, math.inf, 0.0])
def test_a_zero_or_non_finite_row_is_an_error_naming_role_and_row(fault):
    bad = torch.ones(4, 3)
    bad[2] = fault
    with pytest.raises(NonFiniteError, match=r"1 text features are zero or not finite, the first at rows \[2\]"):
        retrieval_metrics(torch.ones(4, 3), bad, torch.arange(4), torch.arange(4), ROLES)


def test_a_query_without_a_positive_is_an_error_unless_allowed_and_then_left_out():
    features = torch.eye(3)
    keys, other = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 9])
    with pytest.raises(DataError, match="1 queries have no positive in the gallery, the first is row 2.*allow_unanswerable"):
        retrieval_metrics(features, features, keys, other, ROLES)
    metrics, rankings = retrieval_metrics(features, features, keys, other, ROLES, allow_unanswerable=True)
    assert metrics["image_to_text_queries"] == 2 and rankings["image_to_text"].kept.tolist() == [0, 1]


def test_half_precision_features_rank_as_the_same_numbers_in_fp32(vector):
    keys = torch.arange(200)
    half = [side.bfloat16() for side in vector]
    there, _ = retrieval_metrics(*half, keys, keys.repeat_interleave(5), ROLES)
    wide, _ = retrieval_metrics(*(side.float() for side in half), keys, keys.repeat_interleave(5), ROLES)
    assert there == wide
