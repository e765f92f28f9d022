"""`python -m mobilenetv3.models` and the counts that it prints."""
import pytest
import torch

from mobilenetv3.models import create_model, list_models
from mobilenetv3.models.__main__ import main
from mobilenetv3.models.counts import count_macs, count_params


def rows(text):
    """Name -> other columns of the printed table."""
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    return {name: columns for name, *columns in cells}


@pytest.mark.parametrize(
    "name, macs",
    # Millions in the papers: 219 and 56 (Howard et al. 2019, Table 3), 300 (Sandler et al. 2018,
    # Table 4). The first is the farthest off: 216.6 are in convolutions and linear layers.
    [("mobilenetv3_large_100", 219), ("mobilenetv3_small_100", 56), ("mobilenetv2_100", 300)],
)
def test_multiply_adds_are_the_papers(name, macs):
    assert count_macs(create_model(name)) / 1e6 == pytest.approx(macs, rel=0.015)


def test_macs_of_one_convolution_and_a_linear_layer():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, padding=1, groups=2),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    )
    model.config = {"in_chans": 4}
    assert count_macs(model, 10) == 10 * 10 * 8 * (4 // 2 * 9) + 8 * 5


def test_counting_leaves_the_model_as_it_was():
    model = create_model("mobilenetv3_small_050").train()
    before = model.bn1.running_mean.clone()
    count_macs(model, 32)
    assert model.training
    assert torch.equal(model.bn1.running_mean, before)
    assert not any(module._forward_hooks for module in model.modules())


def test_running_statistics_are_no_parameters():
    assert count_params(torch.nn.BatchNorm2d(3)) == 6


def test_the_table_lists_every_network_and_its_other_names(capsys):
    assert main(["--img-size", "64"]) == 0
    table = rows(capsys.readouterr().out)
    assert list(table)[:33] == list_models()
    # The two of MindCV that are other networks than timm's of width 0.75.
    assert list(table)[33:] == ["mobilenet_v3_large_075", "mobilenet_v3_small_075"]
    params, macs, side, aliases = table["mobilenetv3_large_100"]
    assert (params, side) == ("5.48", "3x64x64")
    assert "mobilenet_v3_large" in aliases.split(", ")
    assert table["mobilenet_v3_small_075"][0] == "1.65"
    assert table["mobilenetv3_small_075"][0] == "2.04"
    assert table["lraspp_mobilenetv3_large"][0] == "3.22"  # 3,221,538 with torchvision's 21 classes


def test_a_filter_matches_names_and_aliases(capsys):
    assert main(["v2_1", "--img-size", "32"]) == 0
    assert list(rows(capsys.readouterr().out)) == [
        "mobilenetv2_100", "mobilenetv2_110d", "mobilenetv2_120d", "mobilenetv2_140"
    ]
    assert main(["mobilenet-*-050", "--img-size", "32"]) == 0
    assert list(rows(capsys.readouterr().out)) == ["mobilenetv3_small_050"]


@pytest.mark.parametrize(
    "argv, told",
    [
        (["mobilnetv3_smal"], "mobilenetv3_small"),
        (["resnet"], "mobilenetv2_100"),
        (["--img-size", "0"], "from 1 to 2048"),
    ],
)
def test_a_useless_argument_is_an_error_with_status_2(argv, told, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    assert told in capsys.readouterr().err
