"""Programs that models wrote -> verdicts by EvalPlus, run where they can do no harm. Knows nothing of models or Ray."""
