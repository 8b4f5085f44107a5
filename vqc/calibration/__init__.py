"""Calibration: clips, observers that know frames, and range rules."""

from vqc.calibration.clips import Clips, as_clips
from vqc.calibration.deal import Stretch
from vqc.calibration.observe import PHASES, Observed, phase_of, rollout, steps_of
from vqc.calibration.ranges import RULES, find_range
from vqc.calibration.speeds import at_speeds
from vqc.calibration.split import Split, split
from vqc.calibration.statistics import Statistics

__all__ = ["PHASES", "RULES", "Clips", "Observed", "Split", "Statistics", "Stretch", "as_clips", "at_speeds",
           "find_range", "phase_of", "rollout", "split", "steps_of"]  # fmt: skip
