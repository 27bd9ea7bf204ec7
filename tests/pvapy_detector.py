"""Plays areaDetector's PVA plug-in with pvAccessCPP, as areaDetector itself does:  python pvapy_detector.py PORT

Line by line as `pva_detector.py`; PORT is the UDP port on which clients search, and is answered.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

CHANNEL = "SIM:Pva1:Image"
ROWS, COLS = 4, 6


def image(pvaccess: Any, number: int, attributes: dict[str, float]) -> Any:
    """An update with the image of that number; its pixels tell the number."""
    made = pvaccess.NtNdArray()
    made["uniqueId"] = number
    made["dimension"] = [pvaccess.PvDimension(size, 0, size, 1, False) for size in (COLS, ROWS)]
    made["value"] = {"ushortValue": [number % 60_000] * (ROWS * COLS)}
    made["timeStamp"] = pvaccess.PvTimeStamp(1_700_000_000.0 + number)
    made["attribute"] = [pvaccess.NtAttribute(name, pvaccess.PvDouble(value)) for name, value in attributes.items()]
    return made


def main() -> None:
    """Serve until the input ends."""
    udp = sys.argv[1]
    os.environ |= {
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVAS_SERVER_PORT": "0",
        "EPICS_PVAS_BROADCAST_PORT": udp,
        "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
        "EPICS_PVAS_BEACON_ADDR_LIST": "127.0.0.1",
    }
    import pvaccess  # reads the environment

    server = pvaccess.PvaServer()
    server.addRecord(CHANNEL, image(pvaccess, 0, {"SampleRotary": 0.0}))
    server.start()
    print(udp, flush=True)
    for line in sys.stdin:
        word, _, rest = line.partition(" ")
        if word == "image":
            facts = json.loads(rest)
            server.update(CHANNEL, image(pvaccess, facts["id"], facts["attributes"]))
        else:
            count, first, period_s = rest.split()
            for number in range(int(first), int(first) + int(count)):
                server.update(CHANNEL, image(pvaccess, number, {"SampleRotary": number / 10}))
                time.sleep(float(period_s))
        print("done", flush=True)
    server.stop()


if __name__ == "__main__":
    main()
