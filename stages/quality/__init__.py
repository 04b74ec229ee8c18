"""What a mean score does not show: of an artifact beside the teacher, on the same samples.

Pure functions of labels, decisions and groups; which of them make sense is the task's to say
(`Task.quality`). No number stands without its unit, n and bounds. Nothing here judges: the gate
calls the same functions with the evidence that was kept, `worst.worst_class`, `worst.worst_group`,
`f1.macro_f1`, `f1.macro_f1_drop`, `calibration.calibration_error`, `band.robust_score` and
`band.robust_drop`, and gets the same intervals.
"""
