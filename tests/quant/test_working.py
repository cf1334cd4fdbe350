"""Memory beside the weights, against what is really held while codes are chosen."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hasten.quant.dynamic import QuantizeSettings, quantize
from hasten.quant.layers import decoder_layers
from hasten.quant.working import working_bytes
from support import tiny


class Held(TorchDispatchMode):
    """The most bytes of new tensors that are alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage):
        number, size = storage._cdata, storage.nbytes()
        if number in self._seen:
            return
        self._seen.add(number)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, number, size)

    def _gone(self, number, size):
        self._seen.discard(number)
        self.now -= size


def test_no_more_is_held_than_counted(windows):
    model = tiny.llama(hidden_size=64, intermediate_size=256, num_hidden_layers=1)
    with Held() as held:
        quantize(model, windows, QuantizeSettings())
    counted = working_bytes(model, decoder_layers(model), windows.length)
    assert 0.5 * counted < held.most < 1.1 * counted, (held.most, counted)


def test_a_large_vocabulary_counts():
    small = tiny.llama()
    large = tiny.llama(vocab=128 * 1024)
    assert working_bytes(large, decoder_layers(large), 512) > 100 * working_bytes(small, decoder_layers(small), 512)
