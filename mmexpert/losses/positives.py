"""Which rows and columns share a key, as groups: sums over positives without a mask of rows times columns.

Shapes: R rows, C columns, D width; all of static size, so that a GPU is never waited for.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmexpert.losses import tiling


class Positives:
    """Row i is a positive of column j where row_keys[i] == column_keys[j] (int64 [R], [C]).

    first: the column of row 0's own pair, row i's is first + i; None: the own pairs are in another block of columns. others are the
    positives beside the own pair; any_others: whether there may be some (False is sure; off the CPU it is always True).
    """

    def __init__(self, row_keys: Tensor, column_keys: Tensor, first: int | None) -> None:
        self.rows, self.columns, self.first = len(row_keys), len(column_keys), first
        ordered, order = column_keys.sort(stable=True)
        group = F.pad((ordered[1:] != ordered[:-1]).long().cumsum(0), (1, 0))
        place = torch.searchsorted(ordered, row_keys).clamp(max=self.columns - 1)
        self.hit = ordered[place] == row_keys
        self.of_row, self.of_column = group[place], torch.empty_like(order).scatter_(0, order, group)
        sizes = torch.zeros_like(order).index_add_(0, group, torch.ones_like(group))
        self.row_count = sizes[self.of_row] * self.hit  # [R] positives of each row, the own pair among them
        self.column_group_size = sizes[self.of_column]  # [C] columns of a column's key, itself among them
        own = 0 if first is None else 1
        self.any_others = not tiling.free_to_read(column_keys) or bool((self.row_count > own).any())

    def row_others(self, y: Tensor) -> Tensor:
        """y [C, D] -> [R, D]: of each row the sum of y over its other positives; exactly 0 where it has none."""
        sums = torch.zeros_like(y).index_add_(0, self.of_column, y)[self.of_row]
        sums *= self.hit[:, None]
        return sums if self.first is None else sums.sub_(y[self.first : self.first + self.rows])

    def column_others(self, x: Tensor) -> Tensor:
        """x [R, D] -> [C, D]: of each column the sum of x over its other positives among these rows."""
        sums = x.new_zeros(self.columns, x.shape[1]).index_add_(0, self.of_row, x * self.hit[:, None])[self.of_column]
        if self.first is not None:
            sums[self.first : self.first + self.rows] -= x
        return sums
