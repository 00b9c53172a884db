"""What every study shares: the runner of its cells, statistics, tables, pages and plots."""

from __future__ import annotations

from qhw_diffusion.experiment.page import Page, Section
from qhw_diffusion.experiment.statistics import (
    Interval,
    PairedTest,
    difference_cells,
    interval_cell,
    mean_interval,
    p_text,
    paired_test,
    with_holm,
)
from qhw_diffusion.experiment.study import (
    Cell,
    Results,
    Study,
    cell_result,
    load_results,
    load_study,
    open_study,
    reopen_study,
    run_study,
    studies,
    write_page,
)

__all__ = [
    "Cell",
    "Interval",
    "Page",
    "PairedTest",
    "Results",
    "Section",
    "Study",
    "cell_result",
    "difference_cells",
    "interval_cell",
    "load_results",
    "load_study",
    "mean_interval",
    "open_study",
    "p_text",
    "paired_test",
    "reopen_study",
    "run_study",
    "studies",
    "with_holm",
    "write_page",
]
