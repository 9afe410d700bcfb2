"""What tests of adapted layers compare by."""


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()
