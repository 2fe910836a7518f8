"""Settings: every one with its group, default, allowed values and help, from `config`."""

from __future__ import annotations

from dataclasses import dataclass

from gradsift import config
from gradsift.errors import GradsiftError
from gradsift.schema import choices_of, default_of, extra_of, nearest


@dataclass(frozen=True)
class SettingsResult:
    """Settings by name, each with group, default, choices and help."""

    settings: dict[str, dict[str, object]]

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {"settings": self.settings}

    def text(self) -> str:
        """Return what a person wants to know."""
        lines, group = [], None
        for name, one in self.settings.items():
            if one["group"] != group:
                group = one["group"]
                lines += ["", f"{group}:"]
            choices = f" One of {', '.join(map(str, one['choices']))}." if one["choices"] else ""
            default = "" if one["default"] is None else f" [default: {one['default']}]"
            lines.append(f"  {name:24}{one['help']}{choices}{default}")
        return "\n".join(lines).strip()


def explain_settings(name: str | None = None) -> SettingsResult:
    """Return what is to be known of one setting, or of all."""
    groups = (
        config.RunConfig,
        config.ArmsConfig,
        config.ArmTrainingConfig,
        config.ReplayConfig,
        config.EvaluationConfig,
        config.PlanConfig,
    )
    found: dict[str, dict[str, object]] = {}
    for group in groups:
        for key, field in group.model_fields.items():
            if key in found:
                continue
            default = default_of(field) if not field.is_required() else None
            found[key] = {
                "group": extra_of(field, "group"),
                "default": ",".join(map(str, default)) if isinstance(default, tuple) else default,
                "choices": list(choices_of(group, key)),
                "help": field.description,
            }
    if name is not None and name not in found:
        hint = nearest(name, found)
        raise GradsiftError(f"no setting {name!r}{'; ' * bool(hint)}{hint}.")
    order = sorted(found, key=lambda key: config.GROUPS.index(str(found[key]["group"])))
    return SettingsResult({key: found[key] for key in order if name in (None, key)})
