"""A composed data set whose pictures are rows of a feature table: an epoch over it opens no picture file."""

import copy
from typing import Any

from mmexpert.data.records import Draw, RecordDataset


class RowsOfPictures(RecordDataset):
    """Classic rows {image, id} with the row of the table in place of the picture. first: the row of the first record."""

    def __init__(self, pictures: RecordDataset, first: int) -> None:
        super().__init__(pictures.name, pictures.records, "instance")
        self.pictures, self.first = pictures, first
        self.ids = pictures.ids

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """The row of a draw."""
        index = draw[0]
        return {"image": self.first + index, "id": self.ids[self.records[index].id]}


class TableLook:
    """What a data set is asked for pictures, answered by rows of a table. parts: classic rows by part, in the order of the table."""

    def __init__(self, parts: dict[str, RecordDataset]) -> None:
        self.parts: dict[str, RowsOfPictures] = {}
        self.rows: dict[str, dict[str, int]] = {}
        first = 0
        for part, pictures in parts.items():
            self.parts[part] = RowsOfPictures(pictures, first)
            self.rows[part] = {record.id: first + i for i, record in enumerate(pictures.records)}
            first += len(pictures)

    def picture(self, part: str, name: str) -> int:
        """Row of a picture."""
        return self.rows[part][name]

    def pictures(self, part: str) -> RowsOfPictures:
        """Classic rows of a part."""
        return self.parts[part]

    def over(self, dataset: RecordDataset) -> RecordDataset:
        """The same data set, its samples unchanged but for the pictures."""
        looked = copy.copy(dataset)
        looked.picture, looked.pictures = self.picture, self.pictures
        return looked
