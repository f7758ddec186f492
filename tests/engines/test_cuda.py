"""How many rows run for a batch on a GPU."""

from conformer_fast.engines.cuda import bucket


def test_buckets():
    assert [bucket(batch) for batch in range(1, 13)] == [1, 2, 4, 4, 8, 8, 8, 8, 10, 10, 12, 12]
    sizes = [1, 2, 4, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128]
    assert sorted({bucket(batch) for batch in range(1, 129)}) == sizes
    assert bucket(1000) == 1024


def test_bucket_is_the_next_one_and_wastes_little():
    sizes = sorted({bucket(batch) for batch in range(1, 3000)})
    for batch in range(1, 2000):
        rows = bucket(batch)
        assert rows == min(size for size in sizes if size >= batch)
        assert bucket(rows) == rows
        assert rows - batch < (rows / 2 if batch <= 8 else rows / 5)
