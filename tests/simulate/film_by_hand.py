"""The spec's formulas of section 4, one point at a time and without arrays: the reference of test_radiograph.py."""

from math import cos, exp, hypot, sin

H = (0.50, 0.34)


def add(a, b, times=1.0):
    return a[0] + times * b[0], a[1] + times * b[1]


def on(d, w):
    return 1 / (1 + exp(max(-30.0, min(30.0, d / w))))


def cap(x, a, b, r0, r1):
    ax, ay = b[0] - a[0], b[1] - a[1]
    t = max(0.0, min(1.0, ((x[0] - a[0]) * ax + (x[1] - a[1]) * ay) / (ax**2 + ay**2)))
    return hypot(x[0] - a[0] - t * ax, x[1] - a[1] - t * ay) - (r0 + t * (r1 - r0))


def ell(x, c, p, q, t):
    dx, dy = x[0] - c[0], x[1] - c[1]
    return (hypot((dx * cos(t) + dy * sin(t)) / p, (dy * cos(t) - dx * sin(t)) / q) - 1) * min(p, q)


def attenuation_at(p, x, grain, side):
    w, s, h = 1.2 / side, p.severity, p.head
    loose = p.finding == "stem_loosening"
    soft = p.fat * (0.9 * on(ell(x, (0.55, 0.40), 0.55, 0.62, 0), 0.03) + 0.5 * on(cap(x, (0.42, 0.45), (0.46, 1.15), 0.26, 0.20), 0.03))
    c, g, incl = H, 1.0, p.inclination
    if p.finding == "cup_loosening":
        c, g, incl = add(H, (0.030, -0.040), s), 1 + 0.28 * s, incl - 0.62 * s
    r = 1.55 * h
    to_cup = hypot(x[0] - c[0], x[1] - c[1])
    ilium = 0.9 * on(ell(x, (0.70, 0.14), 0.24, 0.13, -0.5), 0.012) + 0.8 * on(
        cap(x, (0.56, 0.22), add(H, (0.03, -0.03)), 0.07, 0.10), 0.01
    )
    pelvis = p.bone * max(ilium, 0.8 * on(abs(ell(x, (0.78, 0.52), 0.10, 0.13, 0.3)) - 0.035, 0.008))
    pelvis *= 1 - 0.9 * on(abs(to_cup) - r * g, 0.004)
    pelvis += 0.10 * grain * on(0.4 - pelvis, 0.1)
    n = (sin(incl), -cos(incl))
    half = on(-((x[0] - c[0]) * n[0] + (x[1] - c[1]) * n[1]) - 0.004, 0.003)
    shell, liner = on(abs(to_cup - r) - 0.008, w) * half, 0.22 * on(to_cup - r, w) * half
    e = H
    if p.finding == "dislocation":
        e = add(H, (-0.055, -0.125), 0.75 + 0.35 * s)
    elif p.finding == "polyethylene_wear":
        e = add(H, (0.006, -0.021), 0.7 + 0.5 * s)
    elif p.finding == "cup_loosening":
        e = add(c, (-0.004, 0.004))
    o = add(e, H, -1.0)
    if p.finding != "dislocation":
        o = (0.9 * o[0], 0.9 * o[1])
    femur, outer, canal = femur_at(p, add(x, o, -1.0), grain, w)
    rod, neck, e, cement, dark = stem_at(p, x, o, e, canal, w, loose)
    femur = (femur + cement) * (1 - dark)
    extra = 0.35 * on(ell(x, (0.36, 0.33), 0.03, 0.02, 0.5), 0.012) if p.heterotopic_bone else 0.0
    if p.wires:
        rings = sum(on(abs(x[1] - y - 0.1 * (x[0] - 0.4)) - 0.004, w) for y in (0.60, 0.66))
        extra += 1.5 * rings * on(outer - 0.004, w)
    metal = max(on(rod, w), on(neck, w), on(hypot(x[0] - e[0], x[1] - e[1]) - h, w))
    return 0.55 * soft + 1.05 * max(pelvis, 0) + 1.05 * max(femur, 0) + liner + extra + 4.2 * max(metal, shell)


def femur_at(p, x, grain, w):
    """x: already shifted by o. Density, outer and canal."""
    k, s, wide = p.canal, p.severity, p.canal + p.cortex
    a, q = (0.415, 0.47), (0.415 + 0.02 - p.adduction, 1.07 + 0.2)
    level = (0.415 + (0.02 - p.adduction) * p.level, 0.47 + 0.60 * p.level)
    dx, dy = x[0] - level[0], x[1] - level[1]
    u, v = dx * cos(p.angle) + dy * sin(p.angle), dy * cos(p.angle) - dx * sin(p.angle)
    if p.finding == "periprosthetic_fracture" and v > 0:
        x = (x[0] + 0.042 * s, x[1])
    outer = min(
        cap(x, a, q, 1.12 * wide, 0.95 * wide),
        cap(x, add(a, (-0.030, -0.045)), add(a, (0, 0.05)), 0.052, 1.2 * wide),
        cap(x, add(a, (0.045, 0.055)), add(a, (0.01, 0.13)), 0.03, 0.03),
    )
    canal = cap(x, add(a, (0, -0.02)), q, 1.25 * k, 0.9 * k)
    femur = p.bone * (1.25 * on(outer, 0.004) - 0.80 * on(canal, 0.005)) + 0.12 * grain * on(outer, w)
    if p.finding == "periprosthetic_fracture":
        femur *= 1 - 0.92 * on(abs(v + 0.010 * sin(90 * u + p.phase)) - 0.011 * (0.8 + 0.5 * s), 0.003)
    return femur, outer, canal


def stem_at(p, x, o, e, canal, w, loose):
    """Fields of rod and neck, the head's centre, cement's density, the dark line's share."""
    s, k = p.severity, p.canal
    length = {"cementless": 0.40, "cemented": 0.37, "short": 0.17}[p.design]
    r0 = k * {"cementless": 0.92, "cemented": 0.62, "short": 0.95}[p.design]
    r1 = r0 * {"cementless": 0.45, "cemented": 0.50, "short": 0.40}[p.design]
    b = add(add((0.415, 0.47), o), (0.012, 0.030 * s if loose else 0.0))
    tilt = p.tilt_sign * 0.10 * s * (0.8 if p.design == "short" else 1.0) if loose else 0.0
    slope = (0.02 - p.adduction) / 0.60 - tilt
    axis = (slope / hypot(slope, 1), 1 / hypot(slope, 1))
    rod = cap(x, b, add(b, axis, length), r0, r1)
    if p.design == "cementless":
        rod = min(rod, cap(x, add(b, (-0.018, -0.002)), add(b, axis, 0.08), 0.8 * r0, r0))
    cement, dark, gap = 0.0, 0.0, 0.001
    if p.design == "cemented":
        gap = 0.018
        mantle = cap(x, b, add(b, axis, length + 0.015), r0 + 0.020, r1 + 0.022)
        plug = ell(x, add(b, axis, length + 0.05), 0.8 * k, 0.016, 0)
        cement = 1.35 * on(mantle, 0.003) * on(canal - 0.004, w) + 1.2 * on(plug, 0.004)
    if loose:
        e = add(e, (0, 0.55 * 0.030 * s))
        dark = 0.88 * on(max(rod - gap - (0.010 + 0.008 * s), gap - rod), 0.003) * on(b[1] - 0.03 - x[1], 0.01)
    return rod, cap(x, add(b, (0.004, -0.008)), e, 0.024, 0.019), e, cement, dark
