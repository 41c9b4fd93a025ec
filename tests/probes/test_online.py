from __future__ import annotations

import math

import numpy as np

from fm.probes.online import neighbours_accuracy, retrieval_recall


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_recall_counts_ranks_up_to_five_in_both_directions() -> None:
    rng = np.random.default_rng(0)
    image, text = unit(rng.standard_normal((40, 6))), unit(rng.standard_normal((40, 6)))
    texts = np.arange(40) // 2  # two studies to a report
    found = retrieval_recall(image, text, texts)
    hits = {"report_to_image_r5": 0, "image_to_report_r5": 0}
    for row in range(40):
        for name, scores in (("report_to_image_r5", image @ text[row]), ("image_to_report_r5", text @ image[row])):
            hits[name] += any(texts[at] == texts[row] for at in np.argsort(-scores)[:5])
    assert all(found[name] == count / 40 for name, count in hits.items())
    assert found["retrieval_r5"] == sum(hits.values()) / 80 and 0 < found["retrieval_r5"] < 1
    assert retrieval_recall(image, image, np.arange(40))["retrieval_r5"] == 1
    assert retrieval_recall(np.ones((40, 6)), np.ones((40, 6)), np.arange(40))["retrieval_r5"] == 0
    assert math.isnan(retrieval_recall(image[:1], text[:1], texts[:1])["retrieval_r5"])


def test_neighbours_of_the_same_patient_have_no_vote() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 20)
    apart = rng.standard_normal((40, 5)) + 6 * labels[:, None]
    assert neighbours_accuracy(apart, labels, [str(row) for row in range(40)]) == 1.0
    # Each patient's two studies lie on top of each other, far from all others, with classes drawn at random.
    twins = np.repeat(100 * rng.standard_normal((20, 5)), 2, axis=0) + rng.standard_normal((40, 5))
    drawn = np.repeat(rng.permutation(np.repeat([0, 1], 10)), 2)
    mine, alone = ([str(row // share) for row in range(40)] for share in (2, 1))
    assert neighbours_accuracy(twins, drawn, alone) > 0.9 > 0.75 > neighbours_accuracy(twins, drawn, mine)
    assert math.isnan(neighbours_accuracy(apart, np.zeros(40, np.int64), alone))
