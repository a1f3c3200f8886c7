"""One process of those that `torchrun` would start: `runpy` runs this file, with JOB among its globals."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from geo_mvmf import folder_lock
from geo_mvmf.errors import GeoMvmfError, LockedError
from geo_mvmf.model import replicas, shared_features, training
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.image_set import ImageSet
from geo_mvmf.model.learner import Learner
from geo_mvmf.model.ranks import Ranks


def freeze_statistics():
    """Batch normalisation by its running statistics, so that rows do not depend on each other."""
    whole = Learner._set_training

    def set_training(self, *, training):
        whole(self, training=training)
        if self.backbone is not None:
            self.backbone.eval()

    Learner._set_training = set_training


def keep_own_gradients():
    """Twin: every rank trains its backbone on its own rows."""
    replicas.sum_gradients = lambda module, ranks: None


def keep_own_clock():
    """The clocks of the ranks differ by minutes, and rank 0's counts."""
    monotonic = training.time.monotonic
    number = int(os.environ["RANK"])
    training.time = type("Clock", (), {"monotonic": staticmethod(lambda: monotonic() * (1 + 100 * number))})


def deal_first_part():
    """Twin: every rank takes up the components of rank 0."""
    whole = Ranks.parts
    Ranks.parts = lambda self, count: [whole(self, count)[0]] * self.size if count == 18 else whole(self, count)


def tell_often():
    """Signs of life with every event."""
    shared_features._SIGN_OF_LIFE_SECONDS = -1.0


def see_other_images():
    ImageSet.digest = lambda self: f"what rank {os.environ['RANK']} sees"


def see_other_files():
    """Copies of the images that are not those of rank 0, on rank 1 alone."""
    whole = ImageSet.files_digest
    ImageSet.files_digest = lambda self: whole(self)[::-1] if os.environ["RANK"] == "1" else whole(self)


def see_no_features():
    """The disk of the feature cache is not there."""
    if os.environ["RANK"] != "0":
        shared_features.np.load = lambda path, **_: (Path("/no/such/disk") / Path(path).name).open()


def map_late():
    """Rank 1 maps the features a second after it heard of them, and only while nobody else could add to them."""
    whole = np.load

    def load(path, **options):
        time.sleep(1.0)
        with pytest.raises(LockedError), folder_lock.holding(Path(path).parent):
            pass
        return whole(path, **options)

    if os.environ["RANK"] != "0":
        shared_features.np.load = load


CHANGES = {
    change.__name__: change
    for change in (
        freeze_statistics, keep_own_gradients, keep_own_clock, deal_first_part, tell_often, see_other_images,
        see_other_files, see_no_features, map_late,
    )
}  # fmt: skip


def run(config, rank, size, port, changes=()):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    for change in changes:
        CHANGES[change]()
    learners = []
    make = Learner.__post_init__
    Learner.__post_init__ = lambda self: (make(self), learners.append(self))[0]
    out = Path(config["out"])
    try:
        training.train(TrainingConfig(**config))
    except GeoMvmfError as error:
        Path(f"{out}-error-{rank}.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        sys.exit(error.exit_code)
    if learners and learners[0].backbone is not None:
        state = {name: value.cpu().numpy() for name, value in learners[0].backbone.state_dict().items()}
        np.savez(f"{out}-backbone-{rank}.npz", **state)


if "JOB" in globals():
    run(**json.loads(globals()["JOB"]))
