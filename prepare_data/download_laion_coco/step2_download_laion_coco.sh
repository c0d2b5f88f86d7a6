#!/bin/sh
# The images of Laion-COCO, through img2dataset, into laion_coco/{00000..}.tar below the cache root: 256 pixels on the
# shorter side where they are larger, all captions and their scores kept. Run it again to go on after an interruption.
#   sh step2_download_laion_coco.sh --max-samples 5000000 --processes 16
exec "${PYTHON:-python3}" -m lavis_ext prepare laion_coco "$@"
