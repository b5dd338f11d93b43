"""Online learning rules: one source of equations for NumPy, torch and Lava."""

from grasp_plugin.learning.decolle import decolle as decolle
from grasp_plugin.learning.decolle import decolle_readout as decolle_readout
from grasp_plugin.learning.etlp import EProp as EProp
from grasp_plugin.learning.etlp import etlp as etlp
from grasp_plugin.learning.etlp import etlp_output as etlp_output
from grasp_plugin.learning.etlp import heterogeneous_tau_ms as heterogeneous_tau_ms
from grasp_plugin.learning.ottt import ottt as ottt
from grasp_plugin.learning.ottt import sltt as sltt
from grasp_plugin.learning.recipes import decolle_for as decolle_for
from grasp_plugin.learning.recipes import etlp_for as etlp_for
from grasp_plugin.learning.recipes import ottt_for as ottt_for
from grasp_plugin.learning.recipes import sltt_for as sltt_for
from grasp_plugin.learning.rule import Factors as Factors
from grasp_plugin.learning.rule import Full as Full
from grasp_plugin.learning.rule import Outer as Outer
from grasp_plugin.learning.rule import PerSynapse as PerSynapse
from grasp_plugin.learning.rule import Plan as Plan
from grasp_plugin.learning.rule import Rule as Rule
from grasp_plugin.learning.rule import ThreeFactor as ThreeFactor
from grasp_plugin.learning.rule import Transform as Transform
from grasp_plugin.learning.rule import check_finite as check_finite
from grasp_plugin.learning.spec import Learning as Learning
from grasp_plugin.learning.transforms import L1 as L1
from grasp_plugin.learning.transforms import Accumulate as Accumulate
from grasp_plugin.learning.transforms import BurnIn as BurnIn
from grasp_plugin.learning.transforms import Late as Late
