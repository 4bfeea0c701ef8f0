# Writes scores.txt: small masks and scores, and the metrics that the official scorer of the ISIC
# challenge gives them, for tests/test_scores.c.
#
#     python3 -m venv v && v/bin/pip install isic-challenge-scoring 'pandas<3' && v/bin/python make_scores.py
#
# One line each, in this order within a case:
#     case NAME
#     mask ID truth|prediction HEIGHT WIDTH BYTES      bytes in hexadecimal, row by row
#     column NAME                                      of the ids in the table of scores
#     label ID MELANOMA KERATOSIS
#     score ID MELANOMA KERATOSIS                      as the table of scores has them
#     expect METRIC VALUE                              nan: not defined

import io
import pathlib
import random
import tempfile
import warnings

import numpy
from isic_challenge_scoring import metrics
from isic_challenge_scoring.classification import ClassificationMetric, ClassificationScore
from isic_challenge_scoring.segmentation import SegmentationScore
from PIL import Image

# Figures that clnet does not give, and in which the scorer fails where all images are of one class.
metrics.auc_above_sensitivity = lambda *arguments: float("nan")
metrics.balanced_multiclass_accuracy = lambda *arguments: float("nan")

CLASSES = ["melanoma", "seborrheic_keratosis"]


def name(i):
    return f"ISIC_{i:07d}"


# ---- segmentation --------------------------------------------------------------------------------

def expected_masks(pairs):
    with tempfile.TemporaryDirectory() as folder:
        for side in (0, 1):
            to = pathlib.Path(folder, str(side))
            to.mkdir()
            for i, pair in enumerate(pairs):
                Image.fromarray(pair[side].astype(numpy.uint8), "L").save(to / f"{name(i)}_segmentation.png")
        mean = SegmentationScore.from_dir(pathlib.Path(folder, "0"), pathlib.Path(folder, "1")).macro_average
    return {f"segmentation.{k}": mean[k] for k in
            ("jaccard", "threshold_jaccard", "dice", "accuracy", "sensitivity", "specificity")}


def write_masks(out, title, pairs):
    out.write(f"case {title}\n")
    for i, pair in enumerate(pairs):
        for side, mask in zip(("truth", "prediction"), pair):
            rows = mask.astype(numpy.uint8).tobytes().hex()
            out.write(f"mask {name(i)} {side} {mask.shape[0]} {mask.shape[1]} {rows}\n")
    for metric, value in expected_masks(pairs).items():
        out.write(f"expect {metric} {float(value)!r}\n")


def row(*runs):
    """A mask of one row: (count, value) after another."""
    return numpy.concatenate([numpy.full((1, n), v) for n, v in runs], axis=1)


def overlap(both, truth, prediction, rest):
    """Masks that share `both` pixels and have that many of their own."""
    return (row((both + truth, 255), (prediction + rest, 0)),
            row((both, 255), (truth, 0), (prediction, 255), (rest, 0)))


def mask_cases(random_numbers):
    def blob(h, w):
        return 255 * (random_numbers.random((h, w)) < random_numbers.random())

    empty, full = numpy.zeros((4, 5)), numpy.full((4, 5), 255)
    half = row((10, 255), (10, 0)).reshape(4, 5)
    yield "ordinary_masks", [(blob(h, w), blob(h, w)) for h, w in ((7, 9), (1, 1), (12, 3), (8, 8))]
    yield "empty_against_empty", [(empty, empty)]
    yield "empty_truth", [(empty, half), (empty, full)]
    yield "empty_prediction", [(half, empty), (full, empty)]
    yield "all_ones", [(full, full), (half, full), (full, half)]
    yield "empty_and_full_among_others", [(empty, empty), (full, full), (half, half), (empty, half), (half, 255 - half)]
    yield "one_pixel", [(row((1, 255)), row((1, 255))), (row((1, 255)), row((1, 0))), (row((1, 0)), row((1, 255)))]
    # 13/20 is the threshold itself, 12/20 and 649/1000 are below, 651/1000 above.
    yield "threshold_inclusive", [overlap(13, 4, 3, 5)]
    yield "threshold_below", [overlap(12, 4, 4, 5), overlap(649, 200, 151, 0)]
    yield "threshold_above", [overlap(651, 200, 149, 7)]
    yield "grey_values", [(row((3, 127), (3, 128), (3, 129), (3, 255)), row((2, 129), (2, 128), (2, 1), (6, 130)))]


# ---- classification ------------------------------------------------------------------------------

def expected_scores(labels, scores, ending):
    truth = "image,melanoma,seborrheic_keratosis\n"
    truth += "".join(f"{name(i)},{float(a)},{float(b)}\n" for i, (a, b) in enumerate(labels))
    table = "image,melanoma,seborrheic_keratosis\n"
    table += "".join(f"{name(i)}{ending},{a},{b}\n" for i, (a, b) in enumerate(scores))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = ClassificationScore.from_stream(io.StringIO(truth), io.StringIO(table), ClassificationMetric.AUC)
    result = {}
    for c in CLASSES:
        for ours, theirs in (("auc", "auc"), ("accuracy", "accuracy"), ("sensitivity", "sensitivity"),
                             ("specificity", "specificity")):
            result[f"classification.{c}.{ours}"] = score.per_category.loc[c, theirs]
    # The scorer's mean leaves out what is not defined; clnet calls the mean undefined then.
    result["classification.mean_auc"] = score.per_category["auc"].mean(skipna=False)
    return result


def write_scores(out, title, column, labels, scores, ending=""):
    out.write(f"case {title}\ncolumn {column}\n")
    for i, (a, b) in enumerate(labels):
        out.write(f"label {name(i)} {a} {b}\n")
    for i, (a, b) in enumerate(scores):
        out.write(f"score {name(i)}{ending} {a} {b}\n")
    for metric, value in expected_scores(labels, scores, ending).items():
        out.write(f"expect {metric} {float(value)!r}\n")


def score_cases(numbers):
    def labels(n):
        return [numbers.choice(((1, 0), (0, 1), (0, 0))) for _ in range(n)]

    def soft(n, digits):
        return [(round(numbers.random(), digits), round(numbers.random(), digits)) for _ in range(n)]

    mixed = [(1, 0), (0, 1), (0, 0), (1, 0), (0, 1), (0, 0)]
    yield "ordinary_scores", "image_id", labels(40), soft(40, 6)
    yield "ordinary_scores_image", "image", labels(25), soft(25, 6)
    yield "some_ties", "image_id", labels(60), soft(60, 1)
    yield "all_tied", "image_id", mixed, [(0.25, 0.75)] * 6
    yield "ties_across_classes", "image", mixed, [(0.5, 0.5), (0.5, 0.5), (0.5, 0.5), (0.9, 0.1), (0.1, 0.9), (0.9, 0.1)]
    yield "no_melanoma", "image_id", [(0, 1), (0, 0), (0, 1), (0, 0)], soft(4, 3)
    yield "only_melanoma", "image_id", [(1, 0)] * 4, soft(4, 3)
    yield "one_class_only", "image_id", [(0, 0)] * 3, soft(3, 3)
    yield "separated", "image_id", mixed, [(0.9, 0.1), (0.2, 0.8), (0.1, 0.2), (0.8, 0.2), (0.1, 0.9), (0.3, 0.1)]
    yield "reversed", "image_id", mixed, [(0.1, 0.9), (0.8, 0.2), (0.9, 0.8), (0.2, 0.8), (0.9, 0.1), (0.7, 0.9)]
    yield "all_scores_zero", "image_id", mixed, [("0.0", "0.0")] * 6
    yield "all_scores_one", "image_id", mixed, [("1.0", "1.0")] * 6
    # Above 0.5 is lesion, 0.5 itself is not.
    yield "at_one_half", "image_id", mixed, [("0.5", "0.5"), ("0.500000001", "0.499999999"), ("0.499999999", "0.5"),
                                             ("0.50000001", "0.5"), ("5e-1", "5.0000001e-1"), ("0.5", "0.50")]
    yield "near_zero_and_one", "image_id", mixed, [("1e-30", "0.999999999999"), ("1e-31", "1.0"), ("0.0", "0.999999999998"),
                                                   ("2e-30", "0.999999999999"), ("1e-29", "1e-3"), ("1.5e-30", "0.0")]
    yield "ids_as_files", "image", labels(12), soft(12, 2), ".JPG"
    yield "two_images", "image", [(1, 0), (0, 1)], [(0.6, 0.4), (0.6, 0.3)]


def main():
    random_numbers = numpy.random.default_rng(1)
    numbers = random.Random(1)
    with open(pathlib.Path(__file__).parent / "scores.txt", "w") as out:
        for title, pairs in mask_cases(random_numbers):
            write_masks(out, title, pairs)
        for case in score_cases(numbers):
            write_scores(out, *case)


main()
