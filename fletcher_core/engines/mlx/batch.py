"""A token batch as the GPU gets it: packed, filled up to a bucket, with what the kernels need to know of it."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from fletcher_kernels.attention import attention_tiles
from fletcher_kernels.kernel import at_least
from fletcher_kernels.norm import sequences_array

from fletcher_core.engines.mlx.transfer import Transfer
from fletcher_core.tokens import Int32, TokenBatch


@dataclass(frozen=True)
class FilledBatch:
    """n sequences in T tokens, T a bucket: what is past the last sequence is filling that nobody reads.

    The filling is short sequences of its own, so that no value anywhere is left undefined. `data` is int32, all that
    goes to the device in one piece: `parts` gives the lengths of ids [T]; cu_seqlens [n + filling + 1] or longer;
    sizes, the number of sequences with the filling; and tiles, see `attention_tiles`. `sampled`: its layers are to be
    measured.
    """

    source: TokenBatch
    tokens: int
    data: Int32
    parts: tuple[int, int, int, int]
    sampled: bool = False

    @classmethod
    def fill(cls, batch: TokenBatch, bucket: int, tile_rows: int, max_positions: int) -> "FilledBatch":
        """Fill `batch` up to `bucket` tokens.

        Args:
            batch: at most `bucket` tokens.
            bucket: tokens.
            tile_rows: as the attention kernel of the device has them.
            max_positions: of the model, for the filling too.
        """
        used = len(batch.ids)
        filling = np.arange(used, bucket, min(tile_rows, max_positions))
        starts = np.concatenate([batch.cu_seqlens[:-1], filling, [bucket]]).astype(np.int32)
        arrays = (
            batch.ids,
            np.zeros(bucket - used, dtype=np.int32),
            at_least(starts),
            sequences_array(len(starts) - 1),
            attention_tiles(starts, tile_rows),
        )
        # Kernels read them four at a time: each begins at a multiple of 16 bytes.
        padded = [np.concatenate([array, np.zeros(-len(array) % 4, np.int32)]) for array in arrays[2:]]
        sizes = [len(array) for array in padded]
        return cls(batch, bucket, np.concatenate([*arrays[:2], *padded]), (bucket, sizes[0], sizes[1], sizes[2]))


@dataclass(frozen=True)
class DeviceBatch:
    """A filled batch on the device; `sequences` counts those that somebody reads."""

    sequences: int
    ids: mx.array
    cu_seqlens: mx.array
    sizes: mx.array
    tiles: mx.array

    @classmethod
    def upload(cls, batch: FilledBatch, transfer: Transfer) -> "DeviceBatch":
        """Copy it there; on the thread that owns the device."""
        data = transfer.upload(batch.data)
        ends = np.cumsum(batch.parts).tolist()
        ids, cu_seqlens, sizes, tiles = (
            data[end - length : end] for end, length in zip(ends, batch.parts, strict=True)
        )
        return cls(len(batch.source), ids, cu_seqlens, sizes, tiles)
