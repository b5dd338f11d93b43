"""The framework-free network: what every back end runs."""

from grasp_plugin.network.discretise import Discretisation as Discretisation
from grasp_plugin.network.discretise import discretise as discretise
from grasp_plugin.network.network import Bias as Bias
from grasp_plugin.network.network import Network as Network
from grasp_plugin.network.network import Population as Population
from grasp_plugin.network.network import Projection as Projection
from grasp_plugin.network.quantise import dequantise as dequantise
from grasp_plugin.network.quantise import quantise as quantise
from grasp_plugin.network.to_nir import to_nir as to_nir
from grasp_plugin.network.weights import Conv as Conv
