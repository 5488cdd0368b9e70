"""Where optimizers that were pickled before the runtime had rooms look for their counts of steps."""

from optgen.runtime.states.step_counts import Count as Count
