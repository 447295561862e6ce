"""Peaks of GPUs in bf16."""

import re

# Dense bf16 peaks in FLOP/s from the vendors' data sheets (half of the numbers given "with sparsity"), by the word of the
# device's name that identifies the model. Cards of other form factors than SXM have lower clocks.
DEVICE_PEAKS = {
    "A10": 125e12,
    "A10G": 70e12,
    "A30": 165e12,
    "A40": 149.7e12,
    "A100": 312e12,
    "A800": 312e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H800": 989e12,
    "H800 PCIe": 756e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
}


def peak_of(device_name: str) -> float | None:
    """Peak FLOP/s in bf16 of a device by its driver's name, e.g. `NVIDIA H100 80GB HBM3`; None if unknown.

    The peak of a MIG slice is unknown, since its name does not give its share of the device.
    """
    words = re.split(r"[\s-]+", device_name)
    model = next((word for word in words if word in DEVICE_PEAKS), None)
    if model is None or "MIG" in words:
        return None
    forms = (f"{model} {word}" for word in words)
    return next((DEVICE_PEAKS[form] for form in forms if form in DEVICE_PEAKS), DEVICE_PEAKS[model])
