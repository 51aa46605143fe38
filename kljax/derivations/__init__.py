"""Derivations that the machine checks: why every formula of the library is true."""

from kljax.derivations import anchors as anchors
from kljax.derivations import museum as museum
from kljax.derivations import parameters as parameters
from kljax.derivations import rules as rules
from kljax.derivations import words as words
from kljax.derivations.catalogue import NAMES as NAMES
from kljax.derivations.catalogue import get as get
from kljax.derivations.checking import check as check
from kljax.derivations.derivation import Derivation as Derivation
from kljax.derivations.derivation import Form as Form
from kljax.derivations.derivation import Same as Same
from kljax.derivations.kill import KillTable as KillTable
from kljax.derivations.kill import kill_table as kill_table
from kljax.derivations.library import shipped_cross_entropy as shipped_cross_entropy
from kljax.derivations.library import shipped_entropy as shipped_entropy
from kljax.derivations.library import shipped_kl as shipped_kl
from kljax.derivations.rules import Rule as Rule
from kljax.derivations.verify import Report as Report
from kljax.derivations.verify import verify as verify
