"""Old name of a module: optimizers pickled by earlier versions look here for their counts of steps."""

from optgen.runtime.states.step_counts import Count as Count
