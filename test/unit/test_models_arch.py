"""The tables against the papers, and the width rules against published parameter counts."""
import pytest

from mobilenetv3.models import create_model
from mobilenetv3.models.arch import ARCHS, dilate, make_divisible, plan, taps
from mobilenetv3.models.counts import count_params

# Howard et al. 2019, Tables 1 and 2, bneck rows: kernel, exp size, #out, SE, NL, stride.
PAPER_LARGE = """
3 16 16 - RE 1
3 64 24 - RE 2
3 72 24 - RE 1
5 72 40 SE RE 2
5 120 40 SE RE 1
5 120 40 SE RE 1
3 240 80 - HS 2
3 200 80 - HS 1
3 184 80 - HS 1
3 184 80 - HS 1
3 480 112 SE HS 1
3 672 112 SE HS 1
5 672 160 SE HS 2
5 960 160 SE HS 1
5 960 160 SE HS 1
"""
PAPER_SMALL = """
3 16 16 SE RE 2
3 72 24 - RE 2
3 88 24 - RE 1
5 96 40 SE HS 2
5 240 40 SE HS 1
5 240 40 SE HS 1
5 120 48 SE HS 1
5 144 48 SE HS 1
5 288 96 SE HS 2
5 576 96 SE HS 1
5 576 96 SE HS 1
"""
# Sandler et al. 2018, Table 2, bottleneck rows: t, c, n, s.
PAPER_V2 = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def blocks_of(family, *args):
    return [block for stage in plan(ARCHS[family], *args).stages for block in stage]


@pytest.mark.parametrize(
    "family, paper, last",
    [("mobilenetv3_large", PAPER_LARGE, 960), ("mobilenetv3_small", PAPER_SMALL, 576)],
)
def test_v3_blocks_are_the_papers(family, paper, last):
    columns = {True: "SE", False: "-", "relu": "RE", "hard_swish": "HS"}
    *blocks, conv = blocks_of(family)
    built = [
        (b.kernel, b.mid_chs, b.out_chs, columns[b.se_chs > 0], columns[b.act], b.stride)
        for b in blocks
    ]
    assert [" ".join(map(str, row)) for row in built] == paper.split("\n")[1:-1]
    assert (conv.kind, conv.kernel, conv.out_chs, conv.act) == ("cn", 1, last, "hard_swish")


def test_v2_blocks_are_the_papers():
    expected = [
        (6 * channels_in if t == 6 else channels_in, c, s if index == 0 else 1)
        for (t, c, n, s), before in zip(PAPER_V2, [32] + [row[1] for row in PAPER_V2])
        for index, channels_in in enumerate([before] + [c] * (n - 1))
    ]
    assert [(b.mid_chs, b.out_chs, b.stride) for b in blocks_of("mobilenetv2")] == expected
    assert len(expected) == 17  # the bottlenecks of the paper


@pytest.mark.parametrize("family", sorted(ARCHS))
def test_there_is_one_tap_for_each_stride(family):
    assert [tap.reduction for tap in taps(plan(ARCHS[family]))] == [2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    "family, stages",
    # timm's depth 1.2 of 1, 2, 3, 4, 2, 3 and 1 blocks, rounded up; its V2 keeps the two ends.
    [
        ("mobilenetv3_large_150d", [2, 3, 4, 5, 3, 4, 2]),
        ("mobilenetv2_110d", [1, 3, 4, 5, 4, 4, 1]),
        ("mobilenetv2_120d", [1, 3, 5, 6, 5, 5, 1]),
    ],
)
def test_a_deeper_network_repeats_blocks_but_never_a_stride(family, stages):
    network = plan(ARCHS[family])
    assert [len(stage) for stage in network.stages] == stages
    strides = [[block.stride for block in stage] for stage in network.stages]
    assert all(set(stage[1:]) <= {1} for stage in strides)
    assert sum(stage[0] == 2 for stage in strides) == 4


def test_the_deeper_v2_keeps_stem_and_head_at_any_width():
    assert (plan(ARCHS["mobilenetv2_110d"], 1.1).stem, plan(ARCHS["mobilenetv2"], 1.2).stem) == (
        32, 40
    )
    assert plan(ARCHS["mobilenetv2_120d"], 1.2).head == 1280


def test_minimal_networks_have_plain_layers_only():
    blocks = blocks_of("tf_mobilenetv3_large_minimal")
    assert {(b.kernel, b.se_chs, b.act) for b in blocks} == {(3, 0, "relu"), (1, 0, "relu")}
    shapes = [(b.mid_chs, b.out_chs, b.stride) for b in blocks]
    assert shapes == [(b.mid_chs, b.out_chs, b.stride) for b in blocks_of("mobilenetv3_large")]


def test_timms_first_v3_squeezes_to_a_plain_quarter_and_has_no_first_residual():
    first, *others = blocks_of("mobilenetv3_rw")
    assert (first.skip, {block.skip for block in others}) == (False, {True})
    sizes = {(b.mid_chs, b.se_chs, b.se_act) for b in others if b.se_chs}
    assert (72, 18, "relu") in sizes and (960, 240, "hard_swish") in sizes


@pytest.mark.parametrize(
    "output_stride, rule, dilations",
    # Of the blocks with the strides 16 and 32 of V3-Large, that is of the stages 3, 4 and 5.
    [
        (32, "timm", "1111 11 111"),
        (16, "timm", "1111 11 122"),
        (16, "torchvision", "1111 11 222"),
        (8, "timm", "1222 22 244"),
        (8, "torchvision", "2222 22 444"),
    ],
)
def test_dilation_takes_the_place_of_strides(output_stride, rule, dilations):
    network = dilate(plan(ARCHS["mobilenetv3_large"]), output_stride, rule)
    stages = ["".join(str(b.dilation) for b in stage) for stage in network.stages[3:6]]
    assert " ".join(stages) == dilations
    strides = [block.stride for stage in network.stages for block in stage]
    assert 2 * 2 ** strides.count(2) == output_stride
    assert [t.reduction for t in taps(plan(ARCHS["mobilenetv3_large"]), output_stride)] == [
        min(reduction, output_stride) for reduction in (2, 4, 8, 16, 32)
    ]


def test_squeeze_excite_is_a_quarter_of_the_expansion_rounded_to_8():
    sizes = {b.mid_chs: b.se_chs for b in blocks_of("mobilenetv3_large") if b.se_chs}
    # 72 / 4 = 18 becomes 24, because 16 is less than 90% of 18.
    assert sizes == {72: 24, 120: 32, 480: 120, 672: 168, 960: 240}


@pytest.mark.parametrize(
    "channels, expected",
    # 18 rounds to 16, less than 90% of it, so 24; 12 is a tie and goes up.
    [(16 * 0.35, 8), (24 * 0.75, 24), (12, 16), (1, 8), (33.6, 32), (1280 * 1.4, 1792)],
)
def test_channels_are_rounded_to_multiples_of_eight(channels, expected):
    assert make_divisible(channels) == expected


@pytest.mark.parametrize("family", sorted(ARCHS))
def test_width_rules_agree_at_width_one(family):
    assert plan(ARCHS[family], 1.0, "timm") == plan(ARCHS[family], 1.0, "torchvision")


@pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 1.0, 1.4, 2.0])
def test_v2_has_one_width_rule(width):
    arch = ARCHS["mobilenetv2"]
    assert plan(arch, width, "timm") == plan(arch, width, "torchvision")


def test_timms_rule_keeps_the_stem_of_narrow_v3_and_the_head_of_every_v3():
    small = ARCHS["mobilenetv3_small"]
    assert (plan(small, 0.5).stem, plan(small, 0.5).head) == (16, 1024)
    assert (plan(small, 0.5, "torchvision").stem, plan(small, 0.5, "torchvision").head) == (8, 512)


def test_v2_head_grows_with_the_width_but_never_shrinks():
    heads = [plan(ARCHS["mobilenetv2"], width).head for width in (0.35, 1.0, 1.4)]
    assert heads == [1280, 1280, 1792]


@pytest.mark.parametrize(
    "name, width_rule, params",
    # As counted in timm 1.0 and torchvision 0.29.
    [
        ("mobilenetv3_large_075", "timm", 3_993_528),
        ("mobilenetv3_large_100", "timm", 5_483_032),
        ("mobilenetv3_small_050", "timm", 1_593_224),
        ("mobilenetv3_small_075", "timm", 2_041_872),
        ("mobilenetv3_small_100", "timm", 2_542_856),
        ("mobilenetv2_035", "timm", 1_677_128),
        ("mobilenetv2_050", "timm", 1_968_680),
        ("mobilenetv2_075", "timm", 2_636_424),
        ("mobilenetv2_100", "timm", 3_504_872),
        ("mobilenetv2_140", "timm", 6_108_776),
        ("mobilenetv3_large_150d", "timm", 14_622_320),
        ("mobilenetv3_rw", "timm", 5_479_918),
        ("tf_mobilenetv3_large_minimal_100", "timm", 3_924_288),
        ("tf_mobilenetv3_small_minimal_100", "timm", 2_044_736),
        ("mobilenetv2_110d", "timm", 4_516_520),
        ("mobilenetv2_120d", "timm", 5_831_144),
        ("mobilenetv3_small_050", "torchvision", 917_264),
        ("mobilenetv3_small_075", "torchvision", 1_653_920),
        ("mobilenetv3_large_075", "torchvision", 3_377_576),
    ],
)
def test_parameter_counts(name, width_rule, params):
    assert count_params(create_model(name, width_rule=width_rule)) == params
