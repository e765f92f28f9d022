"""Counts of (true, predicted), the accuracy of each class, and the files that show them."""
import csv

import pytest
import torch

from mobilenetv3 import confusion, drawing, engine, metrics

CPU = torch.device("cpu")

# Rows are true classes: cat 2 of 3 right, dog never seen, cow taken for a cat twice of twice.
COUNTS = torch.tensor([[2, 1, 0], [0, 0, 0], [2, 0, 0]])
NAMES = ["cat", "dog", "cow"]


def logits(predicted, classes):
    """(N, classes), largest at the class that is predicted."""
    return torch.nn.functional.one_hot(torch.tensor(predicted), classes).float()


def test_a_batch_is_counted_by_true_and_predicted_class():
    table = confusion.Confusion(3, 3, CPU)
    table(logits([0, 0, 1], 3), torch.tensor([0, 0, 0]))
    table(logits([0, 0], 3), torch.tensor([2, 2]))
    assert table.total().tolist() == COUNTS.tolist()
    assert table.total().dtype == torch.int64


def test_outputs_beyond_the_classes_are_columns_of_their_own():
    table = confusion.Confusion(2, 4, CPU)
    table(logits([3, 1], 4), torch.tensor([0, 1]))
    assert table.total().tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
    assert confusion.names_of(["ant", "bee"], 4) == ["ant", "bee", "class 2", "class 3"]


def test_the_diagonal_is_what_top1_counts_also_where_logits_are_equal():
    # Half precision makes ties: 200 images over 40 classes with logits of 3 values.
    generator = torch.Generator().manual_seed(0)
    output = torch.randint(3, (200, 40), generator=generator).float()
    targets = torch.randint(40, (200,), generator=generator)
    table = confusion.Confusion(40, 40, CPU)
    table(output, targets)
    row = metrics.batch_row(torch.tensor(0.0), output, targets).tolist()
    assert int(table.total().diagonal().sum()) == row[1] > 0


def test_evaluation_hands_out_every_batch_and_scores_the_same():
    class Same:
        forward = staticmethod(lambda model, images: model(images))

    model = torch.nn.Linear(4, 3)
    generator = torch.Generator().manual_seed(0)
    loader = [(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator))
              for n in (5, 5, 2)]
    table, quiet = confusion.Confusion(3, 3, CPU), []
    watched = engine.evaluate(model, loader, Same, log=quiet.append, observe=table)
    plain = engine.evaluate(model, loader, Same, log=quiet.append)
    assert watched == plain
    assert int(table.total().sum()) == 12
    assert int(table.total().diagonal().sum()) == plain.correct1


def test_a_class_is_scored_on_its_own_images():
    cat, dog, cow = confusion.per_class(COUNTS, NAMES)
    assert (cat.images, cat.correct, cat.taken_for, cat.taken) == (3, 2, 1, 1)
    assert cat.acc1 == pytest.approx(100.0 * 2 / 3)
    assert (dog.images, dog.acc1, dog.taken_for) == (0, None, None)
    assert (cow.acc1, cow.taken_for, cow.taken) == (0.0, 0, 2)


def test_both_tables_can_be_read_back_with_any_name(tmp_path):
    names = ['tench, "Tinca"\ntinca', "\u9f99 $x_1$", "cow"]
    scores = confusion.per_class(COUNTS, names)
    confusion.write_scores(tmp_path / "scores.csv", scores, names)
    confusion.write_counts(tmp_path / "counts.csv", COUNTS, names)
    with open(str(tmp_path / "scores.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == names
    assert [row["top1"] for row in rows] == ["66.667", "", "0.000"]
    assert [row["taken_for"] for row in rows] == [names[1], "", names[0]]
    with open(str(tmp_path / "counts.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == [row[0] for row in rows[1:]] == names
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == COUNTS.tolist()


def test_the_picture_is_a_png_for_few_classes_and_for_many(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
    from PIL import Image

    many = torch.eye(100, dtype=torch.int64)
    for counts, names in ((COUNTS, ["$a$", "b\n", "c" * 60]), (many, [str(n) for n in range(100)])):
        confusion.draw(tmp_path / "a.png", counts, names, "5 images")
        with Image.open(str(tmp_path / "a.png")) as image:
            assert image.format == "PNG" and min(image.size) >= 400
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20  # more than an empty frame


def test_without_matplotlib_the_fault_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert "pip install matplotlib" in drawing.fault()
