"""The spatial index of a GeoPackage, packed: SQLite's R-tree nodes written full instead of grown box by box.

An insertion into an R-tree walks down from the root and splits nodes on its way, several microseconds a feature. The
index of a layer that is written once can be packed instead: boxes near each other share a leaf (sort-tile-recursive),
leaves near each other share a node, and so on. SQLite keeps nodes, and which node a row is in, in three ordinary
tables, and documents their content; that is where they go.

References:
    Leutenegger, Lopez, Edgington: STR, a simple and efficient algorithm for R-tree packing, ICDE 1997.
    https://sqlite.org/rtree.html, section "Shadow tables"; ``rtreecheck()`` verifies them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geoseg.export.sqlite_pages import PagedTable, PageFile, put_varint

FloatArray = npt.NDArray[np.float64]
Boxes = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_CELL = np.dtype([("id", ">i8"), ("box", ">f4", 4)])
_MOST_CELLS = 51  # SQLite's own limit
_ROOT = 1
# Boxes that are sorted together: a leaf is near square where so many lie in a strip of the map (1.3 MB to hold).
_SORTED_TOGETHER = 1 << 16


class PackedRTree:
    """Fills an empty R-tree with the boxes of rows 1, 2, 3 …, in that order; memory grows by two bytes a row.

    Args:
        file: File of the index.
        nodes: Root page of its table ``…_node``.
        rows: Root page of its table ``…_rowid``.
        node_bytes: Length of a node, as SQLite has chosen it.
    """

    def __init__(self, file: PageFile, nodes: int, rows: int, *, node_bytes: int) -> None:
        self._nodes, self._rows = PagedTable(file, nodes), PagedTable(file, rows)
        self._node_bytes = node_bytes
        self._capacity = min(_MOST_CELLS, (node_bytes - 4) // _CELL.itemsize)
        self._pending: list[Boxes] = []
        self._pending_count = 0
        self._next_row = 1
        self._next_node = _ROOT + 1
        self._leaves: list[Boxes] = []
        self._append_nodes(np.zeros((1, node_bytes), np.uint8))  # the root's place: it is known last

    def add(self, bounds: FloatArray) -> None:
        """Add the boxes of the next rows, (n, 4): minimum x, maximum x, minimum y, maximum y."""
        self._pending.append(_rounded_outward(bounds))
        self._pending_count += len(bounds)
        if self._pending_count >= _SORTED_TOGETHER:
            self._write_leaves()

    def finish(self) -> tuple[bytes, list[tuple[int, int]]]:
        """Write what is pending, and the nodes above the leaves.

        Returns:
            The root node, and the rows of the table ``…_parent``; both are left to the caller to write by SQL.
        """
        parents: list[tuple[int, int]] = []
        if self._next_row == 1 and self._pending_count <= self._capacity:
            boxes = np.concatenate([*self._pending, np.empty((0, 4), np.float32)])
            children, depth = np.arange(1, len(boxes) + 1), 0
            self._append_rows(np.full(len(boxes), _ROOT))
        else:
            self._write_leaves()
            boxes, children, depth = np.concatenate(self._leaves), np.arange(_ROOT + 1, self._next_node), 1
            while len(boxes) > self._capacity:
                order, starts = _pack(boxes, self._capacity)
                numbers = self._write_nodes(children[order], boxes[order], starts)
                parents += zip(children[order].tolist(), np.repeat(numbers, np.diff(starts)).tolist(), strict=True)
                boxes, children, depth = _boxes_of_groups(boxes[order], starts), numbers, depth + 1
            parents += [(child, _ROOT) for child in children.tolist()]
        self._nodes.finish()
        self._rows.finish()
        cells = np.empty(len(children), _CELL)
        cells["id"], cells["box"] = children, boxes
        root = depth.to_bytes(2, "big") + len(children).to_bytes(2, "big") + cells.tobytes()
        return root.ljust(self._node_bytes, b"\0"), sorted(parents)

    def _write_leaves(self) -> None:
        if not self._pending_count:
            return
        boxes = np.concatenate(self._pending)
        order, starts = _pack(boxes, self._capacity)
        numbers = self._write_nodes(self._next_row + order, boxes[order], starts)
        node_of_row = np.empty(len(boxes), np.int64)
        node_of_row[order] = np.repeat(numbers, np.diff(starts))
        self._append_rows(node_of_row)
        self._leaves.append(_boxes_of_groups(boxes[order], starts))
        self._next_row += len(boxes)
        self._pending, self._pending_count = [], 0

    def _write_nodes(self, ids: Ints, boxes: Boxes, starts: Ints) -> Ints:
        """Write one node for each group of cells, and give their numbers."""
        counts = np.diff(starts)
        group = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(ids)) - starts[group]
        cells = np.zeros((len(counts), self._capacity), _CELL)
        cells["id"][group, place], cells["box"][group, place] = ids, boxes
        nodes = np.zeros((len(counts), self._node_bytes), np.uint8)
        nodes[:, 2:4] = counts.astype(">u2").view(np.uint8).reshape(-1, 2)
        nodes[:, 4 : 4 + self._capacity * _CELL.itemsize] = cells.view(np.uint8)
        self._append_nodes(nodes)
        numbers = np.arange(self._next_node, self._next_node + len(counts))
        self._next_node += len(counts)
        return numbers

    def _append_nodes(self, nodes: npt.NDArray[np.uint8]) -> None:
        """Rows (nodeno, data): the header's length, NULL for the rowid, a blob."""
        header = np.empty(8, np.uint8)
        size = put_varint(header, 2, 12 + 2 * self._node_bytes)
        header[0], header[1] = size, 0
        records = np.hstack([np.broadcast_to(header[:size], (len(nodes), size)), nodes])
        self._nodes.append(records.reshape(-1), np.arange(len(nodes) + 1) * records.shape[1])

    def _append_rows(self, node_of_row: Ints) -> None:
        """Rows (rowid, nodeno): the header's length, NULL for the rowid, an integer of four bytes."""
        record = np.dtype([("header", "u1", 3), ("node", ">i4")])
        records = np.empty(len(node_of_row), record)
        records["header"], records["node"] = (3, 0, 4), node_of_row
        self._rows.append(records.view(np.uint8), np.arange(len(records) + 1) * record.itemsize)


def _rounded_outward(bounds: FloatArray) -> Boxes:
    """Boxes in single precision that contain the given ones."""
    boxes = bounds.astype(np.float32)
    low, high = boxes[:, 0::2], boxes[:, 1::2]
    np.nextafter(low, np.float32(-np.inf), out=low, where=low > bounds[:, 0::2])
    np.nextafter(high, np.float32(np.inf), out=high, where=high < bounds[:, 1::2])
    return boxes


def _pack(boxes: Boxes, capacity: int) -> tuple[Ints, Ints]:
    """An order of the boxes, and where in it each group of at most ``capacity`` neighbours begins, and the end."""
    count = len(boxes)
    groups = -(-count // capacity)
    x, y = boxes[:, 0] + boxes[:, 1], boxes[:, 2] + boxes[:, 3]
    width, height = max(float(np.ptp(x)), 1e-30), max(float(np.ptp(y)), 1e-30)
    slices = int(np.clip(round((groups * height / width) ** 0.5), 1, groups))
    # As many groups to a slice as evenly goes, and as many boxes to a group.
    groups_before = np.arange(slices + 1) * groups // slices
    starts = np.arange(groups + 1) * count // groups
    order = np.argsort(y, kind="stable")
    slice_of_rank = np.repeat(np.arange(slices), np.diff(starts[groups_before]))
    return order[np.lexsort((x[order], slice_of_rank))], starts


def _boxes_of_groups(boxes: Boxes, starts: Ints) -> Boxes:
    low, high = (f.reduceat(boxes, starts[:-1], axis=0) for f in (np.minimum, np.maximum))
    return np.column_stack([low[:, 0], high[:, 1], low[:, 2], high[:, 3]])
