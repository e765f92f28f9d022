"""The loss scale's path, against the rules of Apex's scaler."""
import math

import pytest
import torch

from mobilenetv3 import scaling


def step(scaler, value=1.0):
    """One update on gradients of which the last three have this value."""
    gradients = torch.tensor([0.5] * 4 + [value] * 3)
    kept = scaler.unscale(gradients)
    scaler.check(lambda index: f"element {index}")
    return kept is None or bool(kept), gradients


def test_the_scale_starts_at_two_to_the_sixteen():
    assert scaling.DynamicScaler().scale == 65536.0


def test_gradients_are_divided_by_the_scale():
    done, gradients = step(scaling.DynamicScaler(), 65536.0)
    assert done
    assert gradients.tolist() == [0.5 / 65536] * 4 + [1.0] * 3


def test_the_loss_is_multiplied_by_the_scale():
    assert scaling.DynamicScaler().scaled(torch.tensor(0.5)).item() == 32768.0
    assert scaling.StaticScaler(128.0).scaled(torch.tensor(0.5)).item() == 64.0
    loss = torch.tensor(0.5)
    assert scaling.StaticScaler(1.0).scaled(loss) is loss


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_overflow_halves_the_scale_and_skips(bad):
    scaler = scaling.DynamicScaler()
    done, gradients = step(scaler, bad)
    assert not done
    assert scaler.scale == 32768.0
    assert not gradients.any()  # nothing that could spoil what the update is taken back from


def test_the_scale_follows_a_scripted_series():
    scaler, path = scaling.DynamicScaler(), []
    for value in [1.0, math.inf, math.inf, 1.0, math.nan, 1.0]:
        step(scaler, value)
        path.append((scaler.scale, scaler.unskipped))
    assert path == [(65536.0, 1), (32768.0, 0), (16384.0, 0), (16384.0, 1), (8192.0, 0),
                    (8192.0, 1)]


def test_two_thousand_clean_updates_double_the_scale_and_one_overflow_starts_the_count_anew():
    scaler = scaling.DynamicScaler()
    for _ in range(1999):
        step(scaler)
    assert (scaler.scale, scaler.unskipped) == (65536.0, 1999)
    step(scaler)
    assert (scaler.scale, scaler.unskipped) == (131072.0, 0)
    for _ in range(1999):
        step(scaler)
    step(scaler, math.inf)
    assert (scaler.scale, scaler.unskipped) == (65536.0, 0)


def test_a_count_beyond_the_interval_as_of_a_fixed_scale_by_apex_does_not_stop_the_growth():
    scaler = scaling.DynamicScaler()
    scaler.load_state_dict({"loss_scale": 1024.0, "unskipped": 5000})
    step(scaler)
    assert (scaler.scale, scaler.unskipped) == (2048.0, 0)


def test_the_scale_stops_at_two_to_the_twenty_four():
    scaler = scaling.DynamicScaler()
    scaler.load_state_dict({"loss_scale": 2.0**24, "unskipped": 1999})
    step(scaler)
    assert (scaler.scale, scaler.unskipped) == (2.0**24, 0)


def test_the_scale_has_a_floor_that_apex_lacks():
    scaler = scaling.DynamicScaler()
    for _ in range(20):  # Apex's would be at 2**16 / 2**20 = 1/16 and go on towards 0
        step(scaler, math.inf)
    assert scaler.scale == 1.0


def test_a_run_that_only_overflows_is_given_up_and_the_first_bad_parameter_is_named():
    scaler = scaling.DynamicScaler()
    for _ in range(scaling.MAX_SKIPS - 1):
        assert not step(scaler, math.nan)[0]
    with pytest.raises(scaling.Overflow, match="50 updates in a row .* finite: element 4"):
        step(scaler, math.nan)


def test_a_clean_update_forgives_the_skips_before_it():
    scaler = scaling.DynamicScaler()
    for value in ([math.inf] * (scaling.MAX_SKIPS - 1) + [1.0]) * 2:
        step(scaler, value)
    assert scaler.skips == 0


def test_a_static_scale_never_skips_even_on_overflow():
    scaler = scaling.create_scaler(128.0)
    done, gradients = step(scaler, math.inf)
    assert done and math.isinf(gradients[-1])
    assert step(scaler, 128.0)[1][-3:].tolist() == [1.0] * 3
    assert scaler.scale == 128.0


def test_the_state_is_plain_numbers_and_goes_on_where_it_was():
    scaler, other = scaling.DynamicScaler(), scaling.DynamicScaler()
    for value in (1.0, math.inf, 1.0):
        step(scaler, value)
    state = scaler.state_dict()
    assert state == {"loss_scale": 32768.0, "unskipped": 1}
    other.load_state_dict(state)
    assert other.state_dict() == state


def test_a_saturating_device_is_asked_for_its_flag():
    class Flag:
        value, cleared = False, 0

        def clear(self):
            self.cleared += 1

        def read(self):
            return self.value

    flag = Flag()
    scaler = scaling.DynamicScaler(flag)
    scaler.before_backward()
    assert flag.cleared == 1
    # Values saturate, so the gradients look fine; the flag alone knows.
    flag.value = True
    assert not step(scaler)[0]
    flag.value = False
    assert step(scaler)[0]


@pytest.mark.parametrize("position", [0, 3, 6])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_bad_element_anywhere_is_found(position, bad):
    gradients = torch.full((7,), 3e38)  # their norm overflows; their elements do not
    assert scaling.DynamicScaler().unscale(gradients.clone())
    gradients[position] = bad
    assert not scaling.DynamicScaler().unscale(gradients)
