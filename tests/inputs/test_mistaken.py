"""Words on files that were given in place of others."""

import pytest

from geo_mvmf.inputs import mistaken


@pytest.mark.parametrize(
    ("files", "wanted", "found"),
    [
        (["a.safetensors"], "bundle.safetensors", "a.safetensors"),
        (["a.safetensors", "bundle.safetensors"], "bundle.safetensors", "bundle.safetensors"),
        (["a.safetensors", "b.safetensors"], "bundle.safetensors", None),
        (["checkpoint-0000000003.safetensors"], "bundle.safetensors", None),
        (["a.safetensors", "checkpoint-0000000003.safetensors"], "bundle.safetensors", "a.safetensors"),
        ([".a.nc"], "predictions.nc", None),
        ([".a.nc", "b.nc"], "predictions.nc", "b.nc"),
        (["pyproject.toml"], "train.toml", None),
        (["pyproject.toml", "train.toml"], "train.toml", "train.toml"),
    ],
)
def test_the_file_that_is_named_in_a_folder_is_one_that_may_be_wanted(tmp_path, files, wanted, found):
    for name in files:
        (tmp_path / name).touch()
    told = "" if found is None else f"{tmp_path} is a folder; {tmp_path / found} lies in it"
    assert mistaken.folder_with(tmp_path, wanted) == told
