"""How a run that brings vectors up to date behaves: one dataclass of settings, checked when it is made."""

from dataclasses import dataclass
from typing import Literal

from fletcher_core.setting_values import OnDuplicate, OnEmpty, VectorType, check_at_least


@dataclass(frozen=True)
class MaterializeSettings:
    """How a run behaves.

    Args:
        vector_type: how vectors are stored, "float32" or "float16".
        on_empty: null texts and texts without a visible character: "skip" (and count) or "error".
        on_duplicate: an id with several different texts: "quarantine" or "error".
        on_missing: rows of the store that the source does not have at all: "delete" them, or "keep" them, for sources
            that bring a part of the rows at a time. Rows that the source has, but that cannot be embedded any more,
            leave the store either way.
        segment_rows: the most rows of a segment; fewer where vectors are long.
        commit_seconds: commit about this often, so that a killed run loses little more work than this.
        memory_limit: of DuckDB while it detects changes, as DuckDB writes it.
        max_attempts: a row that the engine failed on in so many runs is set aside untried in those that follow, until
            its text or the model changes, or `fletcher quarantine retry` asks for it.
        max_rows: embed no more rows than this in one run, counted over all of its partitions; the rest is left to the
            runs that follow. None: all.
        max_segments: merge a partition's newest files at the end of a run when it has more small ones than this, or
            four times as many in all; 1 and 2 write rows again and again.
        min_free_bytes: end the run with a StoreError when less than this would stay free on the store's disk after
            the next commit. The default is room for a segment (20 MiB) several times over: for the manifest, the
            sender and Longbow's own files on the same disk to go on working while the run ends. 0 checks only that
            the commit itself fits.
        delivery_timeout: seconds to wait at the end for Longbow to make the rows searchable; what is not delivered by
            then stays in the store and goes with the next run.
    """

    vector_type: VectorType = "float32"
    on_empty: OnEmpty = "skip"
    on_duplicate: OnDuplicate = "quarantine"
    on_missing: Literal["delete", "keep"] = "delete"
    segment_rows: int = 8192
    commit_seconds: float = 10.0
    memory_limit: str = "2GB"
    max_attempts: int = 3
    max_segments: int = 32
    delivery_timeout: float = 60.0
    min_free_bytes: int = 256 * 2**20
    max_rows: int | None = None

    def __post_init__(self) -> None:
        at_least = {
            "segment_rows": 1, "commit_seconds": 0, "min_free_bytes": 0, "max_attempts": 1, "max_segments": 1,
            "delivery_timeout": 0,
        }  # fmt: skip
        if self.max_rows is not None:
            at_least["max_rows"] = 1
        for name, least in at_least.items():
            check_at_least(name, getattr(self, name), least)
