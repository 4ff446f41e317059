"""Options of the command line as parameters of algorithms."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import Any, List, Tuple

from qgis.core import (
    QgsProcessingException,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterNumber,
    QgsProcessingParameterString,
)


@dataclass(frozen=True)
class Option:
    """An option of the command line.

    Attributes:
        name: of the parameter.
        flag: on the command line; empty for text that is options itself.
        label: what the dialog shows.
        kind: ``number``, ``whole`` (number), ``switch``, ``text`` or ``choice``.
        default: None where nothing is given by default; the default is not written on the command line.
        choices: of a ``choice``.
        least: of a number.
        advanced: whether the dialog hides it at first.
    """

    name: str
    flag: str
    label: str
    kind: str
    default: Any = None
    choices: Tuple[str, ...] = ()
    least: float = 0.0
    advanced: bool = True

    def parameter(self) -> QgsProcessingParameterDefinition:
        """Return the parameter."""
        optional = self.default is None
        if self.kind == "switch":
            made = QgsProcessingParameterBoolean(self.name, self.label, False)
        elif self.kind == "choice":
            made = QgsProcessingParameterEnum(
                self.name, self.label, list(self.choices), False, self.choices.index(self.default)
            )
        elif self.kind == "text":
            made = QgsProcessingParameterString(self.name, self.label, self.default, False, optional)
        else:
            kinds = QgsProcessingParameterNumber
            kind = kinds.Integer if self.kind == "whole" else kinds.Double
            made = QgsProcessingParameterNumber(self.name, self.label, kind, self.default, optional, self.least)
        if self.advanced:
            made.setFlags(made.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        return made

    def arguments(self, algorithm: Any, parameters: Any, context: Any) -> List[str]:
        """Return what a value of the parameter is on the command line.

        Raises:
            QgsProcessingException: text with a quote that is not closed.
        """
        if self.kind == "switch":
            return [self.flag] if algorithm.parameterAsBool(parameters, self.name, context) else []
        value = self._value(algorithm, parameters, context)
        if value is None or value == self.default:
            return []
        if self.flag:
            return [f"{self.flag}={value}"]
        try:
            # On Windows a backslash parts folders.
            return shlex.split(value.replace("\\", "\\\\") if os.name == "nt" else value)
        except ValueError as error:
            raise QgsProcessingException(f"{self.label}: {value} has a quote that is not closed.") from error

    def _value(self, algorithm: Any, parameters: Any, context: Any) -> Any:
        if self.kind == "choice":
            return self.choices[algorithm.parameterAsEnum(parameters, self.name, context)]
        if self.kind == "text":
            return algorithm.parameterAsString(parameters, self.name, context).strip() or None
        if parameters.get(self.name) is None:
            return self.default
        read = algorithm.parameterAsInt if self.kind == "whole" else algorithm.parameterAsDouble
        return read(parameters, self.name, context)


def arguments_of(options: Tuple[Option, ...], algorithm: Any, parameters: Any, context: Any) -> List[str]:
    """Return what the values of the parameters are on the command line; see ``Option.arguments``."""
    return [word for option in options for word in option.arguments(algorithm, parameters, context)]


EXTRA = Option("EXTRA", "", "Further options, as on the command line", "text")
SHAPES = (
    Option("MIN_AREA", "--min-area", "Smallest polygon (m²)", "number", 0.0, advanced=False),
    Option("SIMPLIFY", "--simplify", "Let outlines move by (m)", "number", advanced=False),
    Option("FILL_HOLES", "--fill-holes", "Fill holes in the data under (m²)", "number", 0.0),
    Option("SMOOTH", "--smooth", "Cut the corners of pixels", "switch"),
    Option("REGULARIZE", "--regularize", "Right-angled outlines, for buildings", "switch"),
    Option("KEEP_BACKGROUND", "--keep-background", "Write background polygons too", "switch"),
)
RUN = (
    Option("BANDS", "--bands", "Bands by index or name, in the model's order (1,2,3)", "text"),
    Option("RESOLUTION", "--resolution", "Work at so many metres per pixel", "number"),
    Option("TTA", "--tta", "Average over flips and turns (8 times the work)", "switch"),
    Option("DEVICE", "--device", "Where networks run", "choice", "auto", ("auto", "cpu", "cuda")),
    Option("WORKERS", "--workers", "Worker processes on this computer (0: none)", "whole", 0),
)
