"""Spiking networks from snnTorch, Norse or NIR on Lava, with online learning."""

from grasp_plugin.backends.build import build as build
from grasp_plugin.network import Discretisation as Discretisation
from grasp_plugin.network import Network as Network
from grasp_plugin.network import dequantise as dequantise
from grasp_plugin.network import discretise as discretise
from grasp_plugin.network import quantise as quantise
from grasp_plugin.network import to_nir as to_nir
from grasp_plugin.runtime.learning import LearningRecord as LearningRecord
from grasp_plugin.runtime.learning import LearningSession as LearningSession
from grasp_plugin.runtime.program import lava_session as lava_session
from grasp_plugin.runtime.session import Recording as Recording
from grasp_plugin.runtime.session import Session as Session

__version__ = "0.1.0"
