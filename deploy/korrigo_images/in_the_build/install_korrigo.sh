#!/bin/sh
# Installs the wheel of Korrigo in the folder $1 below $2, as it lies in the image: /opt/korrigo in it. Called by the
# Containerfile once; every image copies the outcome.
set -eu
packages="$2/opt/korrigo/lib/python3.11/site-packages"
mkdir -p "$packages" "$2/opt/korrigo/bin"
/mnt/bin/uv pip install --quiet --offline --no-cache --no-index --no-deps --link-mode copy \
  --python /opt/korrigo/bin/python --target "$packages" "$1"/korrigo-*.whl
mv "$packages/bin/korrigo" "$2/opt/korrigo/bin/korrigo"
rmdir "$packages/bin"
rm -f "$packages/.lock"
/opt/korrigo/bin/python /mnt/compile.py --below "$2" "$packages"
