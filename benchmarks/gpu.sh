#!/usr/bin/env bash
# What only a machine with a GPU can show, in parts of at most ten minutes each:
#
#     benchmarks/gpu.sh tests
#     benchmarks/gpu.sh processes path=DIR
#     benchmarks/gpu.sh resume path=DIR
#     benchmarks/gpu.sh speed path=DIR
#     benchmarks/gpu.sh curve path=DIR
#     benchmarks/gpu.sh recipe path=DIR recipe=pytorch_examples_650_tied
#
# DIR is WikiText-2's. benchmarks/gpu.py says what a part does, and its settings; called again, a
# part does only what is still missing. All figures are in one file, build/gpu/gpu.json, and in
# $OUT/gpu.json if OUT is set.
# Nothing is fetched. Where packages are missing, WHEELS=DIR has them; lmkit runs from the checkout.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

if [ -n "${WHEELS:-}" ]; then
    site=$PWD/build/gpu/site
    if [ ! -e "$site.done" ]; then
        "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl \
            && touch "$site.done" || exit 2
    fi
    export PYTHONPATH="$site"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$python" benchmarks/gpu.py "$@"
