"""What the reference computes inside, by name."""

import torch
from verify_samples import images

from conformer_fast.model.outputs import observed_outputs, reference_outputs


def test_coupling_rows_are_what_the_units_pass_on(small_model):
    """The two outputs that no module returns, recomputed by hand from the block before."""
    batch = images(2, 3, 32, 48)
    wanted = ("1.map", "1.tokens", "2.fcu_down", "2.tokens", "2.fcu_up")
    with torch.no_grad():
        feature_map, tokens, down, after, up = observed_outputs(small_model, batch, wanted)
        block = small_model.conv_trans_2
        _, inner = block.cnn_block(feature_map)
        squeezed = torch.cat([tokens[:, :1], block.squeeze_block(inner)], dim=1)
        torch.testing.assert_close(down, squeezed + tokens)
        torch.testing.assert_close(after, block.trans_block(down))
        repeated = block.expand_block(after, *inner.shape[-2:])
        stride = block.expand_block.stride
        grid = up.transpose(1, 2).unflatten(2, (32 // 16, 48 // 16))
        torch.testing.assert_close(grid.repeat_interleave(stride, 2).repeat_interleave(stride, 3), repeated)


def test_outputs_come_in_the_order_asked_for(small_model):
    batch = images(1, 3, 32, 32)
    with torch.no_grad():
        one, other = reference_outputs(small_model, batch, ["trans_logits", "2.map"])
        assert torch.equal(one, small_model(batch).trans_logits)
        assert torch.equal(other, small_model.forward_features(batch).maps[1])
