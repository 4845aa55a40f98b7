"""Run by torchrun: ranks whose settings differ."""

import os
import sys
from pathlib import Path

from mappa.learn import Learner
from tests.learn.test_learner import settings

odd = int(os.environ["RANK"])
Learner(settings(Path(sys.argv[1]), rank=4 + odd, lr=1e-3 * (1 + odd)))
