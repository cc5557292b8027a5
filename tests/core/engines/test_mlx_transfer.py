"""A batch's way to a CUDA device and back, with plain memory in place of the pages that only a driver can give."""

import logging

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_pages import PlainPages, deliver_at_once

from fletcher_core.engines.choose import has_gpu
from fletcher_core.engines.mlx import transfer
from fletcher_core.engines.mlx.transfer import DirectTransfers, StagedTransfers, transfers


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> StagedTransfers:
    mx.set_default_device(mx.cpu)
    monkeypatch.setattr(transfer, "HostPages", PlainPages)
    monkeypatch.setattr(transfer, "deliver", deliver_at_once)
    monkeypatch.setattr(transfer, "_SMALLEST", 64)
    return StagedTransfers()


def test_it_is_tried_out_first(staged: StagedTransfers, monkeypatch: pytest.MonkeyPatch) -> None:
    assert staged.problem() == ""
    monkeypatch.setattr(transfer, "deliver", lambda vectors, target: mx.zeros(8))
    assert StagedTransfers().problem() == "what came back is not what was sent"


@pytest.mark.skipif(has_gpu(), reason="a driver is here")
def test_without_a_driver_mlx_s_own_way_is_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert isinstance(transfers("cuda"), DirectTransfers)
    assert "managed memory" in caplog.text
    assert isinstance(transfers("metal"), DirectTransfers)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_batches_in_flight_never_share_pages_and_pages_are_used_again(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "HostPages", PlainPages)
        patch.setattr(transfer, "deliver", deliver_at_once)
        patch.setattr(transfer, "_SMALLEST", 64)
        pool, flying, made = StagedTransfers(), [], 0
        for number in range(data.draw(st.integers(1, 12))):
            rows, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 9))
            sent = np.full(rows * width, number, np.int32)
            one = pool.open()
            uploaded = one.upload(sent)
            mx.eval(one.deliver(uploaded.astype(mx.float32).reshape(rows, width)))
            flying.append((one, uploaded, number, (rows, width)))
            if len(flying) > data.draw(st.integers(0, 2)):
                one, uploaded, wanted, shape = flying.pop(0)
                assert one.fetch().shape == shape
                assert (one.fetch() == wanted).all()
                assert (np.array(uploaded) == wanted).all()
                one.close()
        made = len(pool._all)
        assert made <= 2 * 3 * 5  # ways, batches in flight, sizes
        for one, *_ in flying:
            one.close()
        assert len(pool._free) == made


def test_what_was_fetched_stays_when_the_pages_serve_another_batch(staged: StagedTransfers) -> None:
    kept = []
    for number in range(3):
        one = staged.open()
        mx.eval(one.deliver(mx.full((4, 8), float(number))))
        kept.append(one.fetch())
        one.close()
    assert [set(vectors.reshape(-1)) for vectors in kept] == [{0.0}, {1.0}, {2.0}]
    assert len(staged._all) == 1
