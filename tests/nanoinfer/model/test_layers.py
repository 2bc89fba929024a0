"""What layers keep of nn.Module: their parts are registered, and what is found under a name is what is registered."""

import torch
from torch import nn

from nanoinfer.model.layers import Layer, Linear, empty_parameter


class Pair(Layer):
    def __init__(self):
        super().__init__()
        self.first, self.second = Linear(3, 2, bias=True), Linear(3, 2, bias=False)

    def forward(self, x):
        return self.first(x) + self.second(x)


def assert_found_as_registered(pair):
    assert pair.first is pair._modules["first"]
    for linear in (pair.first, pair.second):
        assert linear.weight is linear._parameters["weight"]
    assert set(dict(pair.named_parameters())) <= {"first.weight", "first.bias", "second.weight"}


def test_parts_are_registered_and_found_again_after_they_were_replaced_or_converted():
    pair = Pair()
    assert set(dict(pair.named_parameters())) == {"first.weight", "first.bias", "second.weight"}
    pair.second.weight = pair.first.weight
    assert pair.second.weight is pair.first.weight
    assert_found_as_registered(pair)
    pair.half()
    assert pair.second.weight.dtype == torch.float16
    assert_found_as_registered(pair)
    pair.first = Linear(3, 2, bias=False)
    assert_found_as_registered(pair)
    pair.second.weight = None
    assert_found_as_registered(pair)


def test_a_call_is_what_forward_returns():
    pair, x = Pair(), torch.randn(4, 3)
    for parameter in pair.parameters():
        nn.init.normal_(parameter)
    expected = x @ (pair.first.weight + pair.second.weight).T + pair.first.bias
    torch.testing.assert_close(pair(x), expected)
    pair.second.bias = empty_parameter(2).zero_()
    torch.testing.assert_close(pair(x), expected)
