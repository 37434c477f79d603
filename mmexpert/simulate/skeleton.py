"""The 22-joint body (SMPL order): bones, what each reflects, and the pose that joint angles make."""

from dataclasses import dataclass

import numpy as np

PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
"""Parent joint; joints: pelvis, hips (left, right), spine1, knees, spine2, ankles, spine3, feet, neck, collars, head, shoulders,
elbows, wrists."""

RCS = np.array(
    [0.02, 0.02, 0.05, 0.02, 0.02, 0.06, 0.012, 0.012, 0.06, 0.006, 0.006, 0.01, 0.03, 0.03, 0.02, 0.012, 0.012, 0.008, 0.008, 0.005, 0.005]
)
"""Radar cross-section in m^2 of the bone that ends in joint 1..21."""

TRUNK, HEAD, HIP, SHOULDER = 0.31, 0.09, 0.09, 0.13  # lengths as shares of body height; widths are half-widths
THIGH, SHIN, UPPER_ARM, FOREARM, FOOT = 0.245, 0.245, 0.155, 0.145, 0.08
ANKLE = 0.02  # the foot's tip lies so much below the ankle


def scatterers(joints: np.ndarray, per_bone: int) -> tuple[np.ndarray, np.ndarray]:
    """joints [n, 22, 3] m -> points [n, S, 3] at (i + 0.5) / per_bone along each bone, and their RCS [S] m^2; S = 21 per_bone."""
    ends, starts = joints[:, 1:], joints[:, list(PARENTS[1:])]
    along = (np.arange(per_bone) + 0.5) / per_bone
    points = starts[:, :, None] + along[:, None] * (ends - starts)[:, :, None]
    return points.reshape(len(joints), -1, 3), np.repeat(RCS / per_bone, per_bone)


@dataclass
class Angles:
    """Joint angles in rad over n frames; left is column 0, right column 1 of the [n, 2] arrays."""

    hip: np.ndarray  # flexion, forward
    knee: np.ndarray  # flexion
    spread: np.ndarray  # hip abduction, outward
    shoulder: np.ndarray  # flexion, forward and up
    raised: np.ndarray  # shoulder abduction, sideways and up
    elbow: np.ndarray  # flexion
    swing: np.ndarray  # forearm beyond the upper arm, sideways
    trunk: np.ndarray  # [n] forward bend
    jump: np.ndarray  # [n] m above the floor
    heading: np.ndarray  # [n] about the vertical; 0 faces +z, positive turns to the person's left
    path: np.ndarray  # [n, 2] pelvis x, z in m

    @classmethod
    def rest(cls, n: int) -> "Angles":
        """Standing still for n frames, facing +z."""
        pairs = [np.zeros((n, 2)) for _ in range(7)]
        return cls(*pairs, *(np.zeros(n) for _ in range(3)), np.zeros((n, 2)))


def pose(angles: Angles, height: float) -> np.ndarray:
    """Joints [n, 22, 3] float64, m, y up; the lower foot stands on the floor, raised by the jump height."""
    n = len(angles.trunk)
    up = np.tile([0.0, 1.0, 0.0], (n, 1))
    forward = np.stack([np.sin(angles.heading), np.zeros(n), np.cos(angles.heading)], 1)
    left = np.cross(up, forward)
    bent = up * np.cos(angles.trunk)[:, None] + forward * np.sin(angles.trunk)[:, None]
    ahead = forward * np.cos(angles.trunk)[:, None] - up * np.sin(angles.trunk)[:, None]
    joints = np.zeros((n, 22, 3))
    for joint, share in ((3, 0.25), (6, 0.5), (9, 0.75), (12, 1.0)):
        joints[:, joint] = bent * (share * TRUNK * height)
    joints[:, 15] = joints[:, 12] + bent * (HEAD * height)
    for side, sign in ((0, 1.0), (1, -1.0)):
        out = sign * left
        hip, knee, ankle, foot = 1 + side, 4 + side, 7 + side, 10 + side
        spread = angles.spread[:, side]
        joints[:, hip] = out * (HIP * height)
        joints[:, knee] = joints[:, hip] + _limb(up, forward, out, angles.hip[:, side], spread) * (THIGH * height)
        bend = angles.hip[:, side] - angles.knee[:, side]
        joints[:, ankle] = joints[:, knee] + _limb(up, forward, out, bend, spread) * (SHIN * height)
        joints[:, foot] = joints[:, ankle] + (forward * FOOT - up * ANKLE) * height
        collar, shoulder, elbow, wrist = 13 + side, 16 + side, 18 + side, 20 + side
        joints[:, collar] = bent * (0.92 * TRUNK * height) + out * (SHOULDER / 3 * height)
        joints[:, shoulder] = bent * (0.92 * TRUNK * height) + out * (SHOULDER * height)
        lift, raised = angles.shoulder[:, side], angles.raised[:, side]
        joints[:, elbow] = joints[:, shoulder] + _limb(bent, ahead, out, lift, raised) * (UPPER_ARM * height)
        fore = _limb(bent, ahead, out, lift + angles.elbow[:, side], raised + angles.swing[:, side])
        joints[:, wrist] = joints[:, elbow] + fore * (FOREARM * height)
    lowest = joints[:, [10, 11], 1].min(1)
    joints[:, :, 1] += (angles.jump - lowest)[:, None]
    joints[:, :, [0, 2]] += angles.path[:, None]
    return joints


def _limb(up: np.ndarray, forward: np.ndarray, out: np.ndarray, flexion: np.ndarray, abduction: np.ndarray) -> np.ndarray:
    """Unit direction of a limb that hangs down at 0, goes forward with flexion and outward with abduction."""
    flexed = forward * np.sin(flexion)[:, None] - up * np.cos(flexion)[:, None]
    return flexed * np.cos(abduction)[:, None] + out * np.sin(abduction)[:, None]
