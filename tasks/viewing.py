"""How the Inspect viewer lists trials: the columns people look at first."""

from inspect_ai.viewer import (
    SampleScoreView,
    ScoreColorScale,
    TaskSamplesColumn,
    TaskSamplesSort,
    TaskSamplesView,
    ViewerConfig,
)

SCORER = "attempts"


def trials_view() -> ViewerConfig:
    """Worst first attempts first, with what followed them.

    Subjects write whatever their latents make them write, so nothing of it is rendered richly.
    """
    score = TaskSamplesColumn.score
    return ViewerConfig(
        trust_content=False,
        sample_score_view=SampleScoreView(default="grid"),
        task_samples_view=TaskSamplesView(
            name="Trials",
            columns=[
                TaskSamplesColumn(id="sampleStatus"),
                TaskSamplesColumn(id="sampleId"),
                TaskSamplesColumn(id="input"),
                TaskSamplesColumn(id="answer"),
                score(SCORER, "first_score"),
                score(SCORER, "change"),
                score(SCORER, "multi_attempt"),
                score(SCORER, "esr"),
                score(SCORER, "restart_phrase"),
                score(SCORER, "degraded"),
                score(SCORER, "unscored"),
                TaskSamplesColumn(id="error"),
            ],
            sort=[TaskSamplesSort.score(SCORER, "first_score", dir="asc")],
            score_labels={
                "first_score": "First score",
                "change": "Change",
                "multi_attempt": "Several attempts",
                "esr": "ESR",
                "restart_phrase": "Restart phrase",
                "degraded": "Degraded",
                "unscored": "Unscored",
            },
            score_color_scales={
                "first_score": ScoreColorScale(palette="good-high", min=0, max=100),
                "change": ScoreColorScale(palette="diverging", min=-100, max=100),
            },
        ),
    )
