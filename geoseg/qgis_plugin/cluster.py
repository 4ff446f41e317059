"""``geoseg cluster`` as an algorithm."""

from __future__ import annotations

from typing import Any, Dict

from qgis.core import QgsProcessingParameterFileDestination

from .options import EXTRA, RUN, SHAPES, Option
from .predict import SCENE_STAGES, SceneAlgorithm

_METHODS = ("feature-clustering", "superpixel-backprop", "active-contour")


class Cluster(SceneAlgorithm):
    """A scene into segments, without a model."""

    command = "cluster"
    title = "Segment a scene without a model"
    description = (
        "Groups the pixels of a scene by colour and texture, and writes the segments as polygons. What a segment means "
        "on the ground is for you to say. The model that it can save segments other scenes in the same way."
    )
    stages = (("fitting", 20), *SCENE_STAGES)
    options = (
        Option("METHOD", "--method", "Method", "choice", _METHODS[0], _METHODS, advanced=False),
        Option("SEGMENTS", "--segments", "Merge to so many segments at most", "whole", least=1, advanced=False),
        Option("SEED", "--seed", "Seed of the random start", "whole", 0),
        *SHAPES,
        *RUN,
        EXTRA,
    )

    def initAlgorithm(self, configuration: Any = None) -> None:
        """Add the parameters."""
        self.add_scene()
        self.add_rest()
        self.addParameter(
            QgsProcessingParameterFileDestination("MODEL", "Fitted model", "Models (*.safetensors)", None, True, False)
        )

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> Dict[str, str]:
        """Run the command."""
        model = self.parameterAsFileOutput(parameters, "MODEL", context)
        more = [f"--save-model={model}"] if model else []
        results = self.run_scene(more, parameters, context, feedback)
        return {**results, "MODEL": model} if results and model else results
