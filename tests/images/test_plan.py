"""Test that a plan of an ingest decodes each image once, and writes each open chunk once."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from daskkm.images.plan import Group, choose_groups


@settings(max_examples=300)
@given(st.data())
def test_groups_write_each_open_chunk_once(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 20), max_size=15))
    start = data.draw(st.integers(0, 20))
    rows = data.draw(st.integers(1, 10))
    max_tiles, max_images = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 6))
    n = start + sum(counts)
    firsts = [start + sum(counts[:i]) for i in range(len(counts))]
    chunks_of = [
        range(first // rows, (first + m - 1) // rows + 1)
        for first, m in zip(firsts, counts, strict=True)
    ]
    chunks = range(start // rows, -(-n // rows)) if counts else range(0)
    recorded = [data.draw(st.booleans()) for _ in counts]
    # Chunks with tiles of images that are not recorded are never complete.
    unknown = {i for own, r in zip(chunks_of, recorded, strict=True) if not r for i in own}
    written = {i for i in chunks if i not in unknown and data.draw(st.booleans())}
    groups = choose_groups(
        counts, start, rows, written, recorded, max_tiles=max_tiles, max_images=max_images
    )

    decoded = [i for group in groups for i in range(group.first, group.last)]
    assert decoded == sorted(set(decoded))
    # An image is decoded if one of its chunks is not written.
    assert decoded == [i for i, own in enumerate(chunks_of) if not written.issuperset(own)]

    opened = [i for i in chunks if i not in written]
    whole = [i for group in groups for i in group.whole]
    seams = {i for group in groups for i in group.seams}
    assert sorted([*whole, *seams]) == opened
    for group in groups:
        begin, end = firsts[group.first], firsts[group.last - 1] + counts[group.last - 1]
        assert group.last - group.first <= max_images
        assert end - begin <= max_tiles or group.last - group.first == 1
        for i in group.whole:
            assert begin <= i * rows
            assert min((i + 1) * rows, n) <= end
        for i in group.seams:
            assert set(range(i * rows, (i + 1) * rows)) & set(range(begin, end))
    # The fragments of a chunk, behind the tiles of the present store, have all of its tiles.
    for i in seams:
        tiles = [t for t in range(i * rows, min((i + 1) * rows, n)) if t < start]
        for group in groups:
            begin, end = firsts[group.first], firsts[group.last - 1] + counts[group.last - 1]
            own = range(max(begin, i * rows), min(end, (i + 1) * rows))
            assert (i in group.seams) == (len(own) > 0)
            tiles += own
        assert tiles == list(range(i * rows, min((i + 1) * rows, n)))


def test_groups_of_no_images_are_none() -> None:
    assert choose_groups([], 5, 4, set(), [], max_tiles=9, max_images=9) == []
    assert choose_groups([4, 4], 0, 4, {0, 1}, [True] * 2, max_tiles=9, max_images=9) == []


def test_group_of_a_large_image_is_alone() -> None:
    groups = choose_groups([1, 50, 1], 0, 8, set(), [False] * 3, max_tiles=10, max_images=9)
    assert groups == [
        Group(0, 1, (), (0,)),
        Group(1, 2, (1, 2, 3, 4, 5), (0, 6)),
        Group(2, 3, (), (6,)),
    ]


def test_group_behind_a_store_shares_the_last_chunk() -> None:
    (group,) = choose_groups([6], 10, 4, set(), [False], max_tiles=99, max_images=9)
    assert group == Group(0, 1, (3,), (2,))
