"""EM-PF, HM-DF and HD-LIF in torch: neuron, quantised weights, attention, training, cost.

The equations are `grasp_plugin.neurons.hdlif`'s; what is claimed of the gradients, and what is
not, is in `grasp_plugin.hdlif.neuron`.
"""

from grasp_plugin.hdlif.attention import SECA as SECA
from grasp_plugin.hdlif.layer import HDLayer as HDLayer
from grasp_plugin.hdlif.layer import HDStack as HDStack
from grasp_plugin.hdlif.neuron import HDLIF as HDLIF
from grasp_plugin.hdlif.presets import empf as empf
from grasp_plugin.hdlif.presets import hdlif_compressed as hdlif_compressed
from grasp_plugin.hdlif.presets import hmdf as hmdf
from grasp_plugin.hdlif.quantisers import QuantConv2d as QuantConv2d
from grasp_plugin.hdlif.quantisers import QuantLinear as QuantLinear
