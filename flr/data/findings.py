"""What a data card shows in words: findings to know before a training, and reasons not to train."""

from collections.abc import Mapping
from typing import Any

from flr.data.boxes import ADD_BOXES
from flr.landmarks.symmetry import ASYMMETRIC

ENOUGH = 30  # faces from which a mean face says something
HOPELESS = 0.4  # deviation of the mean face from its mirror image, box sides, that no face has
NAMED = 10  # skipped faces that a finding names
SHOWN = 20  # examples that a card names of each kind


def findings(card: Mapping[str, Any]) -> list[str]:
    """What a person should know before training on this."""
    lines = []
    same, twice = card["duplicates"]["same_picture"], card["duplicates"]["labelled_twice"]
    alike = card["duplicates"]["look_alike"]
    if card["left_out"]:
        named, more = card["left_out"][:NAMED], len(card["left_out"]) - NAMED
        lines.append(
            f"{len(card['left_out'])} face(s) skipped: {'; '.join(named)}"
            + (f"; and {more} more, see card.json" if more > 0 else "")
        )
    if same["groups"]:
        lines.append(
            f"{same['groups']} image(s) occur more than once, {same['across_splits']} across splits, such as "
            f"{' and '.join(same['examples'][0][:2])}; keep one copy of each"
        )
    if twice["pairs"]:
        lines.append(
            f"{twice['pairs']} face(s) are labelled twice, {twice['across_splits']} across splits, such as "
            f"{' and '.join(twice['examples'][0])}; keep one label of each"
        )
    if alike["across_splits"]:
        lines.append(
            f"{alike['across_splits']} pair(s) of faces in different splits look alike, such as "
            f"{' and '.join(alike['examples'][0])}; compare them (card.json lists {min(SHOWN, alike['across_splits'])}), and "
            "take copies out of one split"
        )
    for part, found in card["identities"]["also_in_training"].items():
        lines.append(
            f"{found['faces']} of {found['of']} {part} faces are of {found['groups']} identities that are trained on too"
        )
    turned = card["turned"]
    if note := orientation_note(card):
        lines.append(note)
    if turned["other_size"]:
        lines.append(
            f"{turned['other_size']} image(s) have another size than their label file states: {turned['example']}"
        )
    if names := card["never_trained"]:
        lines.append(
            f"{len(names)} point(s) have no label in the training split, so that the model cannot learn them: "
            f"{', '.join(names[:NAMED])}; label them or remove them from the scheme"
        )
    for part, (count, of) in card["undefined"].items():
        lines.append(
            f"{count} of {of} {part} faces have no normaliser, since points are missing; the NME is without them"
        )
    for part, count in card["not_detected"].items():
        if count:
            lines.append(f"the detector misses {count} {part} face(s); they are handled as the box policy says")
    return lines + _shape_findings(card)


def orientation_note(card: Mapping[str, Any]) -> str:
    """Report how many images are stored turned, and how their labels are read; empty where there are none."""
    turned = card["turned"]
    if not turned["images"]:
        return ""
    note = f"{turned['images']} image(s) are stored turned (EXIF orientation); their labels are read {turned['read']}"
    return note + ("; see data.reader.upright" if card["form"].startswith("table") else "")


def _shape_findings(card: Mapping[str, Any]) -> list[str]:
    """What is unusual in where the points are."""
    lines, faces = [], sum(card["faces"].values())
    if card["outside"]["points"]:
        lines.append(
            f"{card['outside']['points']} point(s) of {card['outside']['faces']} face(s) lie outside their images; "
            "labels are pixels of the image, counted from 0"
        )
    deviation = card["symmetry"]["deviation"]
    if deviation is not None and deviation > ASYMMETRIC and card["symmetry"]["faces"] >= ENOUGH:
        hint = (
            "are the pairs, or left and right, mixed up?"
            if card["symmetry"]["paired"]
            else "which pairs does a mirror swap?"
        )
        lines.append(
            f"the mean face is {deviation:.2f} box sides away from its mirror image at {card['symmetry']['point']}: {hint}"
        )
    if card["symmetry"]["fault"] and card["symmetry"]["faces"] >= ENOUGH:
        lines.append(f"the mean face is {card['symmetry']['fault']}")
    if card["face_side"] and card["face_side"]["median"] < 24:
        lines.append(f"half the faces are under {card['face_side']['median']:.0f} pixels wide")
    if card["outside"]["faces"] > faces / 2:
        lines.append("most faces have points outside their images: are the labels of other images or in other units?")
    return lines


def nonsense(card: Mapping[str, Any]) -> str:
    """Return why a dataset's labels cannot be what they claim; empty where nothing is known against them.

    The mean face is nothing like its mirror image, or is upside down; nearly every face has points outside its image; or the
    faces are a few pixels small.
    """
    symmetry, faces = card["symmetry"], sum(card["faces"].values()) - card["faces"].get("unlabelled", 0)
    if faces < ENOUGH:
        return ""
    if symmetry["faces"] >= ENOUGH and symmetry["paired"] and (symmetry["deviation"] or 0) > HOPELESS:
        return (
            f"its mean face is {symmetry['deviation']:.2f} box sides away from its mirror image at {symmetry['point']}, which "
            f"is no face{': ' if symmetry['pairs'] else ''}{symmetry['pairs']}; {_orientation_fix(card)}fix the scheme's pairs, "
            "or the order or names of the points in the labels"
        )
    if symmetry["faces"] >= ENOUGH and symmetry["fault"]:
        return (
            f"its mean face is {symmetry['fault']}; {_orientation_fix(card)}fix the axes of its points, or their names"
        )
    if card["outside"]["faces"] > 0.9 * faces:
        return (
            f"{card['outside']['faces']} of {faces} faces have points outside their images; fix the units of its labels"
        )
    if not card["face_side"]["median"]:
        fix = ADD_BOXES if len(card["not_labelled"]) == 1 else "use a scheme of more points"
        return f"the points of its faces span no area, so that no normaliser is defined; {fix}"
    if card["face_side"]["median"] < 4:
        return f"its faces are {card['face_side']['median']:g} pixels wide; give its points in pixels"
    return ""


def _orientation_fix(card: Mapping[str, Any]) -> str:
    """Return the likely fix where most images are stored turned and read upright."""
    turned = card["turned"]
    if 2 * turned["images"] <= card["pictures"] or not card["form"].startswith("table"):
        return ""
    return f"{turned['images']} of its images have an EXIF orientation, so set data.reader.upright=false if labels ignore it; else "
