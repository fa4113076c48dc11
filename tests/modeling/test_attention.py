from __future__ import annotations

import pytest
from packaging.version import Version

from common.errors import ConfigurationError
from modeling.attention import attention_backend, installed_versions


@pytest.mark.parametrize(
    ("engine", "cudnn", "packed", "backend"),
    [
        (None, None, False, "local"),
        ("2.8", "9.13.1", False, "fused"),
        ("2.8", "9.13.0", False, "unfused"),
        ("2.12.0", "9.18.0", True, "fused"),
        ("2.13", "9.20.1", False, "fused"),
    ],
)
def test_the_fastest_that_is_right(engine: str | None, cudnn: str | None, packed: bool, backend: str) -> None:
    versions = [Version(text) if text else None for text in (engine, cudnn)]
    assert attention_backend(*versions, packed=packed) == backend


@pytest.mark.parametrize(("engine", "cudnn"), [(None, None), ("2.11", "9.18"), ("2.12", "9.17.1"), ("2.12", None)])
def test_packing_that_would_be_wrong_is_refused(engine: str | None, cudnn: str | None) -> None:
    versions = [Version(text) if text else None for text in (engine, cudnn)]
    with pytest.raises(ConfigurationError, match=r"data\.packed=false"):
        attention_backend(*versions, packed=True)


def test_an_engine_without_sinks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="knows no attention sinks"):
        attention_backend(Version("2.7"), Version("9.13.1"), packed=False)


def test_versions_of_this_machine() -> None:
    engine, cudnn = installed_versions()
    assert engine is None or engine > Version("1.0")
    assert cudnn is None or cudnn > Version("8.0")
