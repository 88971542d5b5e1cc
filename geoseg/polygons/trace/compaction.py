"""Dropping what no open region needs any more from the tables of regions, arcs and nodes."""

from __future__ import annotations

import numpy as np

from geoseg.polygons.trace.cracks import Int32Array
from geoseg.polygons.trace.tables import DROPPED, UNFINISHED, Arcs, Nodes, Regions
from geoseg.runtime.forest import find_root
from geoseg.runtime.jit import int64, njit


@njit
def compact(
    arcs: Arcs,
    regions: Regions,
    nodes: Nodes,
    kept: Int32Array,
    counts: tuple[int, int, int],
    above: Int32Array,
    piece_sides: Int32Array,
    piece_nodes: Int32Array,
) -> tuple[int, int, int, int]:
    """Drop all that no open region, open piece or unfinished node needs, and renumber the rest.

    An arc that both sides are done with stays while a node at one of its ends has an unfinished arc: the two may turn
    out to bound a region alone.

    Args:
        arcs: All arcs.
        regions: All regions.
        nodes: All nodes.
        kept: Finished points of the arcs.
        counts: How many arcs, regions and nodes there are.
        above: Region of each pixel above the seam, (W,); renumbered.
        piece_sides: Regions of open pieces, (p, 2); renumbered.
        piece_nodes: Nodes of open pieces, (p, 2); renumbered.

    Returns:
        How many arcs, regions, nodes and points are left.
    """
    arc_count, region_count, node_count = counts
    region_number = np.zeros(region_count, dtype=np.int32)
    for x in range(len(above)):
        above[x] = find_root(regions.parent, int64(above[x]))
        region_number[above[x]] = 1
    # Pieces and arcs name any number of a region; turn them into roots while the forest stands.
    for piece in range(len(piece_sides)):
        for side in range(2):
            piece_sides[piece, side] = find_root(regions.parent, int64(piece_sides[piece, side]))
    for arc in range(arc_count):
        for side in range(2):
            arcs.sides[arc, side] = find_root(regions.parent, int64(arcs.sides[arc, side]))
    left_regions = 1
    for region in range(1, region_count):
        if region_number[region]:
            region_number[region] = left_regions
            regions.parent[left_regions] = left_regions
            regions.value[left_regions] = regions.value[region]
            regions.pixels[left_regions] = regions.pixels[region]
            regions.first[left_regions] = regions.first[region]
            regions.last[left_regions] = regions.last[region]
            regions.confidence_sum[left_regions] = regions.confidence_sum[region]
            regions.confidence_min[left_regions] = regions.confidence_min[region]
            regions.halves[left_regions] = regions.halves[region]
            regions.tail[left_regions] = regions.tail[region]
            left_regions += 1
    region_number[0] = 0
    for x in range(len(above)):
        above[x] = region_number[above[x]]

    unfinished = np.zeros(node_count, dtype=np.bool_)
    node_used = np.zeros(node_count, dtype=np.bool_)
    for node in range(node_count):
        for direction in range(4):
            unfinished[node] |= nodes.halves[node, direction] == UNFINISHED
    for piece in range(len(piece_sides)):
        for side in range(2):
            piece_sides[piece, side] = region_number[piece_sides[piece, side]]
            if piece_nodes[piece, side] >= 0:
                node_used[piece_nodes[piece, side]] = True

    arc_number = np.full(arc_count, np.int32(-1))
    left_arcs, size = 0, 0
    for arc in range(arc_count):
        start, end = arcs.nodes[arc, 0], arcs.nodes[arc, 1]
        if arcs.done[arc] == 3 and (start < 0 or not (unfinished[start] or unfinished[end])):
            continue
        arc_number[arc] = left_arcs
        if start >= 0:
            node_used[start] = node_used[end] = True
        for side in range(2):
            arcs.sides[left_arcs, side] = region_number[arcs.sides[arc, side]]
            arcs.nodes[left_arcs, side] = arcs.nodes[arc, side]
            arcs.keys[left_arcs, side] = arcs.keys[arc, side]
            arcs.follower[left_arcs, side] = arcs.follower[arc, side]
        arcs.area[left_arcs] = arcs.area[arc]
        arcs.lowest[left_arcs] = arcs.lowest[arc]
        arcs.done[left_arcs] = arcs.done[arc]
        low, high = arcs.span[arc, 0], arcs.span[arc, 1]
        if arcs.done[arc] == 3:
            high = low
        for i in range(low, high):  # points move towards the front only
            kept[size + i - low, 0], kept[size + i - low, 1] = kept[i, 0], kept[i, 1]
        arcs.span[left_arcs, 0], arcs.span[left_arcs, 1] = size, size + high - low
        size += high - low
        left_arcs += 1

    node_number = np.full(node_count, np.int32(-1))
    left_nodes = 0
    for node in range(node_count):
        if not node_used[node]:
            continue
        node_number[node] = left_nodes
        for direction in range(4):
            half = int64(nodes.halves[node, direction])
            if half >= 0:
                arc = arc_number[half >> 1]
                half = 2 * int64(arc) + (half & 1) if arc >= 0 else int64(DROPPED)
            nodes.halves[left_nodes, direction] = half
        left_nodes += 1
    for arc in range(left_arcs):
        for side in range(2):
            if arcs.nodes[arc, side] >= 0:
                arcs.nodes[arc, side] = node_number[arcs.nodes[arc, side]]
            if not arcs.done[arc] >> side & 1:  # all in the list of an open region are still needed
                half = int64(arcs.follower[arc, side])
                arcs.follower[arc, side] = 2 * arc_number[half >> 1] + (half & 1)
    for region in range(1, left_regions):
        half = int64(regions.tail[region])
        if half >= 0:
            regions.tail[region] = 2 * arc_number[half >> 1] + (half & 1)
    for piece in range(len(piece_nodes)):
        for side in range(2):
            if piece_nodes[piece, side] >= 0:
                piece_nodes[piece, side] = node_number[piece_nodes[piece, side]]
    return left_arcs, left_regions, left_nodes, int(size)
