"""Meta-learning in torch: an initialisation (and step sizes) from which a few shots are enough.

`maml` is the learner, `inner` what an adaptation step is, `grids` fixed-point updates, `tasks` its
data, `checks` what is refused of all these, `trial` what a model must be, `twice` the test that a
surrogate can be differentiated twice. Plans as inner steps, over a `Network`, are in
`training.meta_plan`.
"""

from grasp_plugin.learning.meta.grids import Grid as Grid
from grasp_plugin.learning.meta.inner import Gradient as Gradient
from grasp_plugin.learning.meta.inner import Inner as Inner
from grasp_plugin.learning.meta.maml import MAML as MAML
from grasp_plugin.learning.meta.maml import anil as anil
from grasp_plugin.learning.meta.maml import boil as boil
from grasp_plugin.learning.meta.spikes import smooth_twin as smooth_twin
from grasp_plugin.learning.meta.spikes import spike as spike
from grasp_plugin.learning.meta.stack import Stack as Stack
from grasp_plugin.learning.meta.tasks import Tasks as Tasks
from grasp_plugin.learning.meta.twice import (
    assert_twice_differentiable as assert_twice_differentiable,
)
