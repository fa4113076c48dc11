"""The prepared folder and the tiny model that the tests of evaluation use, for the tests of clients and servers."""

from tests.evaluation.conftest import _one_thread, hf_folder, prepared_folder

__all__ = ["_one_thread", "hf_folder", "prepared_folder"]
