"""What the tests of the config share."""

import contextlib

import pytest

from revvideo.config import ConfigError


@contextlib.contextmanager
def refused(*parts: str):
    """Expect one ConfigError whose message holds every part, in one line."""
    with pytest.raises(ConfigError) as info:
        yield
    missing = [part for part in parts if part not in str(info.value)]
    assert not missing, f"{missing} not in: {info.value}"
    assert "\n" not in str(info.value)
