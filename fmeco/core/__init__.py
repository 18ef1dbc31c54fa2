"""The vocabulary of fmeco: what datasets, augmentations, backbones and objectives say to each other."""

from fmeco.core.data import *  # noqa: F403
from fmeco.core.data import MISSING_CLASS as MISSING_CLASS
from fmeco.core.data import Any as Any
from fmeco.core.data import mix_numbers as mix_numbers
from fmeco.core.data import same_modality as same_modality
from fmeco.core.data import seed_torch as seed_torch
