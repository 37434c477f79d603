"""The definitions of the heads, written for one pair in plain loops: what the tensor code is compared with."""

import itertools
import math

import torch
from torch.nn import functional as F

GAMMA, TAU = 0.1, 0.1


def unit(x):
    return F.normalize(x, dim=-1, eps=1e-6)


def global_pair(q, t):
    return float(unit(q.mean(0)) @ unit(t.mean(0)))


def window_means(x, size, stride):
    found = []
    for start in range(0, len(x), stride):
        window = x[start : start + size]
        if len(window) >= min(len(x), (size + 1) // 2):
            found.append(unit(window.mean(0)))
    return found


def local_pair(q, t, sizes=(4, 2, 3, 1)):
    a, b = window_means(unit(q), *sizes[:2]), window_means(unit(t), *sizes[2:])
    forth = sum(max(float(x @ y) for y in b) for x in a) / len(a)
    back = sum(max(float(x @ y) for x in a) for y in b) / len(b)
    return (forth + back) / 2


def attention_one_way(q, t):
    q, t = unit(q), unit(t)
    cosines = []
    for token in q:
        weights = torch.softmax(t @ token / TAU, 0)
        cosines.append(float(unit((weights[:, None] * t).sum(0)) @ token))
    return sum(cosines) / len(cosines)


def attention_pair(q, t):
    return (attention_one_way(q, t) + attention_one_way(t, q)) / 2


def paths(steps, tokens, moves):
    """All index sequences that never go back."""
    if moves == "free":
        return list(itertools.combinations_with_replacement(range(tokens), steps))
    every = itertools.product((0, 1), repeat=steps - 1)
    walks = [tuple(itertools.accumulate((0, *moves_made))) for moves_made in every]
    return [walk for walk in walks if walk[-1] == tokens - 1]


def monotone_one_way(q, t, moves="free", gamma=GAMMA):
    table = (unit(q) @ unit(t).T).double()
    sums = [sum(float(table[step, token]) for step, token in enumerate(path)) for path in paths(len(q), len(t), moves)]
    return gamma * (math.log(sum(math.exp(total / gamma) for total in sums)) - math.log(len(sums))) / len(q)


def temporal_pair(q, t):
    return (monotone_one_way(q, t) + monotone_one_way(t, q)) / 2


def warps(i, j):
    """All warping paths from (0, 0) to (i, j), as lists of cells."""
    if i == 0 and j == 0:
        return [[(0, 0)]]
    found = []
    for di, dj in ((1, 0), (0, 1), (1, 1)):
        if i >= di and j >= dj:
            found += [[*path, (i, j)] for path in warps(i - di, j - dj)]
    return found


def soft_dtw_pair(q, t, gamma=GAMMA):
    cost = 1 - (unit(q) @ unit(t).T).double()
    every = warps(len(q) - 1, len(t) - 1)
    value = -gamma * math.log(sum(math.exp(-sum(float(cost[cell]) for cell in path) / gamma) for path in every))
    free = -gamma * math.log(len(every))
    return 1 - (value - free) / (len(q) + len(t) - 1)


def combined_pair(q, t):
    shares = {"global": 0.5, "local": 0.25, "attention": 0.15, "temporal": 0.1}
    scores = {"global": global_pair, "local": local_pair, "attention": attention_pair, "temporal": temporal_pair}
    return sum(share * scores[name](q, t) for name, share in shares.items())


PAIRS = {
    "global": global_pair,
    "local": local_pair,
    "attention": attention_pair,
    "temporal": temporal_pair,
    "combined": combined_pair,
    "soft_dtw": soft_dtw_pair,
}
