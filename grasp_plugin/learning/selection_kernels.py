"""Compiled inner loops of `learning.selection`: sort, walk the staircase, find a threshold, write.

Compiled by Numba on first use, cached. Vectors are contiguous float64; a and q fall where the
docstring says sorted. Thresholds are floats themselves: a bisection halves their bit patterns.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import numba
import numpy as np

DIGITS, BINS = 4, 256  # the upper half of a float64, in bytes
SCAN = 8  # a row of which an eighth is written is passed from end to end

jit = numba.njit(cache=True, nogil=True)


@jit
def falling(values):
    """Indices by falling value, ties by index: np.argsort(-values, kind="stable").

    A radix sort by the upper half of the bits, the index in the lower half, then by insertion.
    """
    n, low = values.size, np.uint64(0xFFFFFFFF)
    packed, moved = np.empty(n, np.uint64), np.empty(n, np.uint64)
    counts = np.zeros((DIGITS, BINS), np.int64)
    for i in range(n):
        bits = np.float64(values[i] + 0.0).view(np.int64)  # one zero only
        key = np.uint64(bits if bits < 0 else bits ^ np.int64(0x7FFFFFFFFFFFFFFF))
        packed[i] = (key & ~low) | np.uint64(i)
        for d in range(DIGITS):
            counts[d, np.int64((key >> np.uint64(32 + 8 * d)) & np.uint64(255))] += 1
    for d in range(DIGITS):
        places, shift, total = counts[d], np.uint64(32 + 8 * d), 0
        for b in range(BINS):
            places[b], total = total, total + places[b]
        for i in range(n):
            digit = np.int64((packed[i] >> shift) & np.uint64(255))
            moved[places[digit]] = packed[i]
            places[digit] += 1
        packed, moved = moved, packed
    order, shifts = (packed & low).astype(np.int64), 0
    for i in range(1, n):
        j, index = i, order[i]
        while j > 0 and values[order[j - 1]] < values[index]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = index
        shifts += i - j
        if shifts > 4 * n:  # most values share their upper half
            return np.argsort(-values, kind="mergesort")
    return order


@jit
def nonzero(values):
    """np.count_nonzero, of floats much faster."""
    n = 0
    for i in range(values.size):
        n += values[i] != 0
    return n


@jit
def flawed(a, q):
    """1 if an entry is not finite, 2 if a q is negative, else 0."""
    flaw = 0
    for i in range(q.size):
        if q[i] < 0:
            flaw = 2
    for i in range(q.size):
        if not np.isfinite(q[i]):
            flaw = 1
    for o in range(a.size):
        if not np.isfinite(a[o]):
            flaw = 1
    return flaw


@jit
def staircase(a, q, tau, counts):
    """counts[r] = how many q_c have a_r q_c > tau, a and q sorted. Returns the sum."""
    total, c = 0, q.size
    for r in range(a.size):
        while c > 0 and not a[r] * q[c - 1] > tau:
            c -= 1
        counts[r] = c
        total += c
    return total


@jit
def _walk(a, q, tau, enough):
    """`staircase` without the counts; stops beyond `enough`."""
    total, c = 0, q.size
    for r in range(a.size):
        while c > 0 and not a[r] * q[c - 1] > tau:
            c -= 1
        total += c
        if c == 0 or total > enough:
            break
    return total


@jit
def _between(a, q, low, high, room):
    """All scores with low < a_r q_c <= high, sorted a and q."""
    out, n = np.empty(room), 0
    c = e = q.size
    for r in range(a.size):
        while c > 0 and not a[r] * q[c - 1] > low:
            c -= 1
        if c == 0:
            break
        while e > 0 and not a[r] * q[e - 1] > high:
            e -= 1
        for j in range(e, c):
            out[n] = a[r] * q[j]
            n += 1
    return out[:n]


@jit
def _surely_below(a, q, k):
    """A float below the (k + 1)-th largest score, sorted a and q: in the corner of the r largest
    rows and s largest columns, r s > k, no score is less than a_r q_s."""
    best, r = 0.0, 1
    while r <= a.size:
        s = k // r + 1
        if s <= q.size:
            best = max(best, a[r - 1] * q[s - 1])
        r *= 2
    return np.int64(np.float64(best).view(np.int64) - 1).view(np.float64) if best > 0 else 0.0


@jit
def _threshold(a, q, k):
    """(the least float tau >= 0 with at most k scores above it, comparisons), sorted a and q.

    Closes in from both sides until few scores are in question, then picks the (k + 1)-th largest
    out of those. The bits of a float grow as its logarithm does; the next guess is where the line
    through the last two, in log count by bits, meets a count a little beyond k, on the side that
    did not move last; or half way, if that does not help.
    """
    line = a.size + q.size  # comparisons of a walk, at most
    few = line // 8
    floor = _surely_below(a, q, k)
    low, high = np.float64(floor).view(np.int64), np.float64(a[0] * q[0]).view(np.int64)
    above_low, above_high, walks = _walk(a, q, floor, 4 * k + line), 0, 1
    if above_low <= k:
        return 0.0, walks * line
    last, last_found, middle, found = high, 1, low, above_low
    while above_low - above_high > few and low + 1 < high:
        walks += 1
        aim, step = max(k - few // 3, 1) if found > k else k + few // 3, 0.0
        if found != last_found and found > 0 and last_found > 0 and walks < 8:
            step = (middle - last) * np.log(found / aim) / np.log(last_found / found)
        last, last_found = middle, found
        if 0 < abs(step) < high - low and low < middle + np.int64(step) < high:
            middle += np.int64(step)
        else:
            middle = low + (high - low) // 2
        found = _walk(a, q, np.int64(middle).view(np.float64), 4 * k + line)
        if found > k:
            low, above_low = middle, found
        else:
            high, above_high = middle, found
    top = np.int64(high).view(np.float64)
    if low + 1 >= high:
        return top, walks * line
    scores = _between(a, q, np.int64(low).view(np.float64), top, above_low - above_high)
    place = scores.size - (k + 1 - above_high)
    return np.partition(scores, place)[place], (walks + 1) * line + scores.size


@jit
def _fill(a, q, tau, missing, counts):
    """Take `missing` more pairs with a score of exactly tau, row by row; they follow in order."""
    for r in range(a.size):
        while missing > 0 and counts[r] < q.size and a[r] * q[counts[r]] == tau:
            counts[r] += 1
            missing -= 1


@jit
def top(a, q, k):
    """(counts by row, columns by falling q, comparisons) of the k largest scores, all > 0."""
    rows, columns = falling(a), falling(q)
    sorted_a, sorted_q = a[rows], q[columns]
    found, compared = np.zeros(a.size, np.int64), 0
    if k > 0 and a.size and q.size and sorted_a[0] * sorted_q[0] > 0:
        tau, compared = _threshold(sorted_a, sorted_q, k)
        taken = staircase(sorted_a, sorted_q, tau, found)
        if tau > 0:
            _fill(sorted_a, sorted_q, tau, k - taken, found)
    counts = np.empty_like(found)
    counts[rows] = found
    return counts, columns, compared


@jit
def above(a, q, tau):
    """(counts by row, columns by falling q) of all scores > tau."""
    rows, columns = falling(a), falling(q)
    found = np.empty(a.size, np.int64)
    staircase(a[rows], q[columns], tau, found)
    counts = np.empty_like(found)
    counts[rows] = found
    return counts, columns


@jit
def covered(a, q_sums, counts):
    """The sum of a_r q_c over the pairs taken; q_sums[c] = sum of the first c sorted q."""
    total = 0.0
    for r in range(a.size):
        total += a[r] * q_sums[counts[r]]
    return total


@jit
def covering_tau(a, q, q_sums, wanted, counts):
    """(the largest float tau >= 0 at which the pairs above it hold at least `wanted`; walks)."""
    low, high, walks = np.int64(0), np.float64(a[0] * q[0]).view(np.int64), 0
    while low < high:
        walks += 1
        middle = low + (high - low + 1) // 2
        staircase(a, q, np.int64(middle).view(np.float64), counts)
        if covered(a, q_sums, counts) >= wanted:
            low = middle
        else:
            high = middle - 1
    return np.int64(low).view(np.float64), walks


@jit
def write(weights, left, right, scale, counts, order):
    """weights[o, order[c]] += scale left_o right_order[c] for c < counts[o]; C order.

    A row of which much is written is passed from end to end, in the order of memory.
    """
    n = order.size
    rank = np.empty(n, np.int32)
    for c in range(n):
        rank[order[c]] = c
    for o in range(counts.size):
        count = np.int32(counts[o])
        if count == 0:
            continue
        factor, row = scale * left[o], weights[o]
        if SCAN * count < n:
            for c in range(count):
                row[order[c]] += factor * right[order[c]]
        else:
            for i in range(n):
                if rank[i] < count:
                    row[i] += factor * right[i]


@jit
def write_transposed(weights, left, right, scale, counts, order):
    """`write` for weights [N_i, N_o] in C order: column by column, the rows that go so far."""
    rows = falling(counts.astype(np.float64))
    factors, few = np.empty(rows.size), 0
    while few < rows.size and counts[rows[few]] > 0:
        factors[few] = scale * left[rows[few]]
        few += 1
    c = 0
    while few > 0:
        x, line = right[order[c]], weights[order[c]]
        for r in range(few):
            line[rows[r]] += factors[r] * x
        c += 1
        while few > 0 and counts[rows[few - 1]] <= c:
            few -= 1
