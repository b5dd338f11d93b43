"""Exact gradients of spike times: weights, delays, adaptive thresholds, time constants.

`oracle` is any graph, one event at a time; `engine` one layer and a batch, compiled; `layers` the
torch modules (import them from there: this package itself does not need torch).
"""

from grasp_plugin.learning.exact.crossing import critical_weight as critical_weight
from grasp_plugin.learning.exact.engine import LayerGradients as LayerGradients
from grasp_plugin.learning.exact.engine import Parameters as Parameters
from grasp_plugin.learning.exact.engine import Run as Run
from grasp_plugin.learning.exact.engine import layer_gradients as layer_gradients
from grasp_plugin.learning.exact.engine import run_layer as run_layer
from grasp_plugin.learning.exact.oracle import Graph as Graph
from grasp_plugin.learning.exact.oracle import simulate as simulate
from grasp_plugin.learning.exact.oracle_adjoint import LossGradient as LossGradient
from grasp_plugin.learning.exact.oracle_adjoint import adjoint as adjoint
from grasp_plugin.learning.exact.roots import roots_expsum as roots_expsum
from grasp_plugin.learning.exact.traffic import Traffic as Traffic
from grasp_plugin.learning.exact.traffic import dense_bytes as dense_bytes
